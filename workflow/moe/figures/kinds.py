"""What each kind of figure is drawn by, what its row of config/figures.tsv has to say, and which files it reads."""

from typing import NamedTuple


class Kind(NamedTuple):
    """`draws` is "module:function" below moe.figures, imported only when something is drawn."""

    draws: str
    needs_runs: bool
    x: str  # what column x holds: "attributes", "metrics", "steps", "layers", "groups" or "" (nothing to say)
    y: str
    reads: tuple[str, ...] = ()  # of each seed's folder; the metrics that a row names read theirs besides
    of_scale: tuple[str, ...] = ()  # of results/{scale}


STEP_ROWS, PROBED = ("metrics.csv",), ("routing.csv",)
KINDS = {
    # tables
    "table": Kind("tables:runs_table", True, "attributes", "metrics", ("validation.csv",)),
    "best-table": Kind("best:best_table", True, "attributes", "metrics", ("scores.csv", "validation.csv")),
    "backbones": Kind("tables:backbones_table", False, "", "backbone", of_scale=("backbones.csv",)),
    "stage-hours": Kind("stage_hours:stage_hours", True, "", "", (*STEP_ROWS, "validation.csv")),
    "speeds": Kind("speeds:speeds", False, "", "", of_scale=("speed.csv",)),
    "router-pull": Kind("pull:router_pull", True, "", "", (*STEP_ROWS, "run.yaml")),
    "faithful-tokens": Kind("tokens:faithful_tokens", True, "", "", ("top_tokens.csv",)),
    # what needs no run
    "routing-example": Kind("diagram:routing_example", False, "", "", of_scale=("routing_example.csv",)),
    "gate-functions": Kind("gates:gate_functions", False, "", "", of_scale=("gate_functions.csv",)),
    "recurrent-router": Kind("recurrence:recurrent_router", False, "", "", of_scale=("recurrent_example.csv",)),
    # over training
    "sparsity": Kind("sparsity:sparsity", True, "steps", "steps", STEP_ROWS),
    "stages": Kind("sparsity:stages", True, "steps", "", STEP_ROWS),
    "curves": Kind("curves:curves", True, "steps", "steps", STEP_ROWS),
    "flips": Kind("flips:flips", True, "steps", "", STEP_ROWS),
    "similarity": Kind("similarity:similarity_over_training", True, "", "", (*STEP_ROWS, "run.yaml")),
    # over sizes
    "scaling": Kind("scaling:scaling", True, "attributes", "metrics", ("validation.csv",)),
    # over the probed text
    "token-activity": Kind("tokens:token_activity_figure", True, "", "", ("token_activity.csv",)),
    "expert-shares": Kind("shares:expert_heatmap", True, "", "", PROBED),
    "layer-sparsity": Kind("shares:layer_sparsity_figure", True, "", "", PROBED),
    "selection": Kind("shares:selection_frequencies", True, "", "", PROBED),
    "information": Kind("information:information_maps", True, "", "", ("mutual_information.csv", "validation.csv")),
    "entropy": Kind("entropies:entropy_violins", True, "groups", "", ("score_statistics.csv", "score_entropy.csv")),
    "layer-similarity": Kind("similarity:similarity_by_layer", True, "groups", "", ("weights.csv",)),
    "router-weights": Kind("similarity:router_weights", True, "", "", ("weights.csv",)),
    "domain-shares": Kind("domains:domain_shares_figure", True, "layers", "", PROBED),
    "domain-activity": Kind("domains:domain_activity", True, "", "", PROBED),
}

LAYERS = ("all", "ends")  # every layer, or the first, a middle and the last one

# Routers that share a panel, where the panels of a figure of RMoE show different ones (4 and 13); all: no choice.
GROUPS = {
    "all": (),
    "baselines": ("smoe", "hypermoe", "smoe-mlp", "random-smoe", "cosine-moe", "xmoe", "rmoe"),
    "recurrence": ("smoe", "rmoe", "rmoe-np", "rmoe-np-r0.5", "rmoe-np-r1.0"),
    "xmoe": ("smoe", "rmoe", "xmoe", "rmoe-xmoe"),
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
    "active_experts",
    "l1_lambda",
    "flip_rate",
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
