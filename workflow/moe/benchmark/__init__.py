"""How fast this package trains, beside itself with other parts and beside what a user would pick instead.

Everything is measured in one process, in turns, so that a machine that slows down slows all alike; what is reported are
ratios within a turn. `python -m moe.benchmark --output results/benchmark/cpu.csv` (see docs/performance.md).
"""
