"""The benchmark's CSV as a table and a picture."""

from pathlib import Path

from moe.figures.benchmark import draw_benchmark

draw_benchmark(Path(snakemake.input[0]), list(snakemake.output))
