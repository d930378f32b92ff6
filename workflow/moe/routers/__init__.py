"""Every router, by the name that config/runs.tsv uses. Add a part in its file and a line here."""

import inspect
import warnings
from difflib import get_close_matches
from typing import Any

import torch

from moe.routers.base import Gates, Router, Routing, Sequences
from moe.routers.expert_choice import ExpertChoice
from moe.routers.hashing import Hash
from moe.routers.lory import Lory
from moe.routers.loss_free import LossFree
from moe.routers.memory import GRU, LSTM, RNN, ScoreResidual, SharedProjector
from moe.routers.relu import ReLU
from moe.routers.scores import MLP, Cosine, Hyper, Linear, Random, XMoE
from moe.routers.sparse_mixer import SparseMixer
from moe.routers.topk import TopK

__all__ = ["ROUTERS", "Gates", "Router", "Routing", "Sequences", "build_router", "check_router", "options_of"]

# name -> the three parts, and the options that make the name what it is
CHOSEN = dict(gates=TopK, normalise="chosen")  # RMoE's top-k
ROUTERS: dict[str, dict[str, Any]] = {
    # ReMoE (2412.14711): its method and the baselines of its table 2
    "relu": dict(scores=Linear, gates=ReLU),
    "topk": dict(scores=Linear, gates=TopK),
    "expert-choice": dict(scores=Linear, gates=ExpertChoice),
    "hash": dict(gates=Hash),
    "lory": dict(scores=Linear, gates=Lory),
    "sparsemixer-v2": dict(scores=Linear, gates=SparseMixer),
    # RMoE (2408.06793): its method, the other cells, the ablations of its recurrence
    "rmoe": dict(memory=GRU, scores=Linear, **CHOSEN),
    "rmoe-rnn": dict(memory=RNN, scores=Linear, **CHOSEN),
    "rmoe-lstm": dict(memory=LSTM, scores=Linear, **CHOSEN),
    "rmoe-shared-projector": dict(memory=SharedProjector, scores=Linear, **CHOSEN),
    "rmoe-np": dict(memory=GRU, scores=Linear, **CHOSEN, passing="none"),
    "rmoe-detach": dict(memory=GRU, scores=Linear, **CHOSEN, passing="detach"),
    "rmoe-np-r0.5": dict(memory=ScoreResidual, scores=Linear, **CHOSEN, residual_weight=0.5),
    "rmoe-np-r1.0": dict(memory=ScoreResidual, scores=Linear, **CHOSEN, residual_weight=1.0),
    "rmoe-np-r0.5-detach-r": dict(
        memory=ScoreResidual, scores=Linear, **CHOSEN, residual_weight=0.5, detach_residual=True
    ),
    "rmoe-np-r1.0-detach-r": dict(
        memory=ScoreResidual, scores=Linear, **CHOSEN, residual_weight=1.0, detach_residual=True
    ),
    "rmoe-xmoe": dict(memory=GRU, scores=XMoE, **CHOSEN),
    # RMoE's baselines
    "smoe": dict(scores=Linear, **CHOSEN),
    "smoe-mlp": dict(scores=MLP, **CHOSEN),
    "random-smoe": dict(scores=Random, **CHOSEN),
    "cosine-moe": dict(scores=Cosine, **CHOSEN),
    "xmoe": dict(scores=XMoE, **CHOSEN),
    "hypermoe": dict(scores=Hyper, **CHOSEN),
    # tried by neither paper
    "rmoe-relu": dict(memory=GRU, scores=Linear, gates=ReLU),
    "xmoe-relu": dict(scores=XMoE, gates=ReLU),
    "loss-free": dict(scores=Linear, gates=LossFree),
}
PARTS = ("memory", "scores", "gates")
SIZES = ("layers", "width", "inputs", "experts", "top_k")  # come from the model, not from the options
# type of an option's default -> the types that fit, and how a sentence calls them
KINDS = {bool: ((bool,), "true or false"), int: ((int,), "an integer"), float: ((int, float), "a number")}
KINDS |= {str: ((str,), "a word")}


def options_of(name: str) -> dict[str, Any]:
    """Every option of the router `name` with its default."""
    parameters = {}
    for part in PARTS:
        if part in ROUTERS[name]:
            parameters |= inspect.signature(ROUTERS[name][part]).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in SIZES}


def check_router(name: str, options: dict[str, Any], **sizes: int) -> None:
    """ValueError, one sentence, unless `name` takes all these options, each of the type of its default.

    sizes: layers, width, experts and top_k; given, the router is also built, on the meta device.
    """
    if name not in ROUTERS:
        raise ValueError(f"router {name!r} is unknown{_nearest(name, ROUTERS)}")
    known = options_of(name)
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"option {key!r} is unknown to router {name!r}{_nearest(key, known)}")
        types, expected = KINDS.get(type(known[key]), ((object,), ""))
        if not isinstance(value, types) or (isinstance(value, bool) and int in types):
            raise ValueError(f"option {key} is {value!r}, expected {expected}")
    if sizes:
        _try_to_build(name, options, sizes)


def _try_to_build(name: str, options: dict[str, Any], sizes: dict[str, int]) -> None:
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # torch's, about empty tensors
            router = build_router(name, **sizes, **options)
        problem = "" if all(p.numel() for p in router.parameters()) else "a parameter has no elements"
    except (TypeError, RuntimeError, ArithmeticError) as error:  # torch's own; the parts raise ValueError
        problem = str(error).split("\n")[0]
    if problem:
        small = next((key for key, value in options.items() if type(value) is int and value < 1), None)
        if small is not None:
            raise ValueError(f"option {small} is {options[small]!r}, expected at least 1")
        given = ", ".join(f"{key}: {value}" for key, value in options.items()) or "its defaults"
        raise ValueError(f"router {name!r} cannot be built with {given} ({problem})")


def build_router(name: str, *, layers: int, width: int, experts: int, top_k: int, **options: Any) -> Router:
    """The router `name` for a model of `layers` MoE layers; each part takes the options that its signature names."""
    check_router(name, options)
    if not 1 <= top_k <= experts:
        raise ValueError(f"router {name!r}: top_k is {top_k}, expected at least 1 and at most the {experts} experts")
    recipe = ROUTERS[name]
    options = {key: value for key, value in recipe.items() if key not in PARTS} | options

    def part(kind: str, **sizes: int):
        parameters = inspect.signature(recipe[kind]).parameters
        return recipe[kind](**{k: v for k, v in (options | sizes).items() if k in parameters})

    memory = part("memory", layers=layers, width=width) if "memory" in recipe else None
    inputs = memory.outputs if memory is not None else width
    scores = part("scores", layers=layers, inputs=inputs, experts=experts) if "scores" in recipe else None
    gates = part("gates", layers=layers, experts=experts, top_k=top_k)
    try:
        return Router(layers, experts, scores, gates, memory)
    except ValueError as error:
        raise ValueError(f"router {name!r}: {error}") from None


def _nearest(name: str, known) -> str:
    close = get_close_matches(str(name), list(known), n=1, cutoff=0)
    return f"; the nearest is {close[0]!r}" if close else ""
