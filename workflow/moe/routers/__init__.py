"""Every router, by the name that config/runs.tsv uses. Add a part in its file and a line here."""

import inspect
from difflib import get_close_matches
from typing import Any

from moe.routers.base import Gates, Router, Routing
from moe.routers.memory import GRU, RNN
from moe.routers.relu import ReLU
from moe.routers.scores import Linear
from moe.routers.topk import TopK

__all__ = ["ROUTERS", "Gates", "Router", "Routing", "build_router", "check_router"]

# name -> the three parts, and the options that make the name what it is
ROUTERS: dict[str, dict[str, Any]] = {
    "topk": dict(scores=Linear, gates=TopK),
    "relu": dict(scores=Linear, gates=ReLU),
    "smoe": dict(scores=Linear, gates=TopK, normalise="chosen"),
    "rmoe": dict(memory=GRU, scores=Linear, gates=TopK, normalise="chosen"),
    "rmoe-rnn": dict(memory=RNN, scores=Linear, gates=TopK, normalise="chosen"),
}
PARTS = ("memory", "scores", "gates")
SIZES = ("layers", "width", "inputs", "experts", "top_k")  # come from the model, not from the options


def check_router(name: str, options: dict[str, Any]) -> None:
    """ValueError, one sentence with the nearest valid name, unless `name` takes all these options."""
    if name not in ROUTERS:
        raise ValueError(f"router {name!r} is unknown{_nearest(name, ROUTERS)}")
    known = {
        key
        for part in PARTS
        if part in ROUTERS[name]
        for key in inspect.signature(ROUTERS[name][part]).parameters
        if key not in SIZES
    }
    for key in options:
        if key not in known:
            raise ValueError(f"option {key!r} is unknown to router {name!r}{_nearest(key, known)}")


def build_router(name: str, *, layers: int, width: int, experts: int, top_k: int, **options: Any) -> Router:
    """The router `name` for a model of `layers` MoE layers; each part takes the options that its signature names."""
    check_router(name, options)
    recipe = ROUTERS[name]
    options = {key: value for key, value in recipe.items() if key not in PARTS} | options

    def part(kind: str, **sizes: int):
        parameters = inspect.signature(recipe[kind]).parameters
        return recipe[kind](**{k: v for k, v in (options | sizes).items() if k in parameters})

    memory = part("memory", layers=layers, width=width) if "memory" in recipe else None
    inputs = memory.outputs if memory is not None else width
    scores = part("scores", layers=layers, inputs=inputs, experts=experts)
    gates = part("gates", layers=layers, experts=experts, top_k=top_k)
    return Router(layers, experts, scores, gates, memory)


def _nearest(name: str, known) -> str:
    close = get_close_matches(str(name), list(known), n=1, cutoff=0)
    return f"; the nearest is {close[0]!r}" if close else ""
