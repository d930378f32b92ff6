"""PyTorch's compiler: kept out where nothing is compiled, and told what not to compile where something is."""

import importlib
from unittest.mock import patch

import torch

from moe import experts


def prepare_compiler() -> None:
    """Leave the dispatch of tokens out of what is compiled.

    How many rows each expert has is known only when it runs, and the compiler knows grouped products in bfloat16 only.
    """
    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # a router counts its steps: no code for each of them
    for function in (experts.route_pairs, experts.grouped_product):
        setattr(experts, function.__name__, torch.compiler.disable(function))


def leave_compiler_out() -> None:
    """Keep PyTorch's compiler from being imported, 1.5 s a process, where nothing is compiled.

    DeepSpeed's Muon, never used here, compiles functions at import; an optimiser imports the compiler only to keep it
    away from its bookkeeping (moe.engine takes AdamW's step without that).
    """
    with patch.object(torch, "compile", lambda function=None, **options: function or (lambda later: later)):
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    for method in vars(torch.optim.Optimizer).values():
        if hasattr(method, "__wrapped__"):
            vars(method.__wrapped__).setdefault("__dynamo_disable", method.__wrapped__)
