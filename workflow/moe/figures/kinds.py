"""What each kind of figure is drawn by and what its row of config/figures.tsv has to say."""

from typing import NamedTuple


class Kind(NamedTuple):
    """`draws` is "module:function" below moe.figures, imported only when something is drawn."""

    draws: str
    needs_runs: bool
    x: str  # what column x holds: "attributes", "metrics", "steps" or "" (nothing to say)
    y: str


KINDS = {
    "table": Kind("tables:runs_table", True, "attributes", "metrics"),
    "backbones": Kind("tables:backbones_table", False, "", "backbone"),
    "gate-functions": Kind("gates:gate_functions", False, "", ""),
    "sparsity": Kind("sparsity:sparsity", True, "steps", "steps"),
    "stages": Kind("sparsity:stages", True, "steps", ""),
    "curves": Kind("curves:curves", True, "steps", "steps"),
}

# Columns of a run's metrics.csv that may stand on an axis (per-layer columns are not drawn so).
STEPS = [
    "step",
    "tokens",
    "loss",
    "router_loss",
    "learning_rate",
    "gradient_norm",
    "sparsity",
    "l1_lambda",
    "valid_loss",
    "tokens_per_second",
    "mfu",
    "memory_gib",
    "seconds",
]

# Metric of the reported backbones -> (column of backbones.csv, its factor to the printed unit).
BACKBONE = {
    "active_params": ("dense_parameters", 1e-6),
    "total_params": ("moe_parameters_e8", 1e-6),
    "flops_per_sequence": ("gflops_per_sequence", 1),
    "hidden_size": ("width", 1),
    "num_layers": ("layers", 1),
    "num_heads": ("heads", 1),
    "num_query_groups": ("kv_heads", 1),
}
