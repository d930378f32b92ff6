"""Cases of official reference vectors: how they are found, read, compared, and shown to be compared whole.

GOLDEN_VECTORS in the environment names another folder of the same layout (default: tests/golden).
Shape letters: T tokens, E experts, K chosen experts.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

OWN = Path(__file__).parent / "golden"
ROOT = Path(os.environ.get("GOLDEN_VECTORS") or OWN).resolve()
CLAIMS: dict[str, list[str]] = {}  # group -> the tests that take its cases, as file::test
Named = dict[
    str, tuple[Tensor, Callable[[Tensor], Tensor]]
]  # official name -> our tensor, the view of it that is meant


class Case:
    """A case's tensors by name, and the comparison that its description prescribes."""

    def __init__(self, path: Path):
        self.meta = json.loads(path.read_text())
        self.tensors = load_file(path.with_suffix(".safetensors"))
        self.given = self.meta["hyperparameters"]
        self.results = {n for n, meta in self.meta["tensors"].items() if meta["role"] in ("output", "gradient")}
        self.compared: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def precisions(self) -> Iterator[tuple[torch.dtype, str]]:
        """The number formats in which the official code ran, and what names begin with there."""
        yield torch.float32, ""
        if any(name.startswith("f64.") for name in self.tensors):
            yield torch.float64, "f64."

    def variable(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A copy of a stored tensor, to take gradients at."""
        return self[name].to(dtype, copy=True).requires_grad_()

    def check(self, name: str, mine) -> None:
        """Compare `mine` with the stored tensor `name`."""
        self.compared.add(name)
        meta, reference = self.meta["tensors"][name], self.tensors[name].double()
        mine = torch.as_tensor(mine).detach().double().reshape(reference.shape)
        difference = (mine - reference).abs()
        if meta["compare"] == "exact":
            assert (mine == reference).all(), name
        elif meta["compare"] == "elementwise_rel":
            assert (difference <= meta["rel"] * reference.abs()).all(), (name, difference.max())
        else:
            assert meta["compare"] == "normwise", meta["compare"]
            bound = meta["rel"] * reference.abs().max() + meta.get("abs", 0.0)
            assert difference.max() <= bound, (name, difference.max(), bound)

    def compare(self, measured: dict[str, Tensor], prefix: str = "") -> None:
        """Check all that is stored of `measured`; the names of both begin with `prefix` in the file alone."""
        for name, mine in measured.items():
            if prefix + name in self.results:
                self.check(prefix + name, mine)

    def finish(self) -> None:
        """Every stored result has met ours."""
        missing = sorted(self.results - self.compared)
        assert not missing, f"{self.meta['case']}: never compared: {', '.join(missing)}"


@pytest.fixture(name="case")
def loaded_case(path: Path) -> Case:
    return Case(path)


def cases(*groups: str):
    """The decorated test takes every case of these groups, and fails if it leaves a stored result out."""
    paths = [path for group in groups for path in sorted((ROOT / group).glob("*.json"))]
    names = [str(path.relative_to(ROOT).with_suffix("")) for path in paths]

    def decorate(function):
        for group in groups:
            CLAIMS.setdefault(group, []).append(f"{Path(function.__code__.co_filename).name}::{function.__name__}")

        @functools.wraps(function)
        def test(case, **others):
            function(case, **others)
            case.finish()

        return pytest.mark.parametrize("path", paths, ids=names)(test)

    return decorate


def whole(tensor: Tensor) -> Tensor:
    """The view of a tensor that the official code stores as we do."""
    return tensor


def transposed(tensor: Tensor) -> Tensor:
    """The view of a stack of matrices whose official ones are [out, in]."""
    return tensor.mT


@torch.no_grad()
def load(case: Case, named: Named, prefix: str = "") -> None:
    """Write the stored weights into ours."""
    for name, (tensor, view) in named.items():
        part = view(tensor)
        assert part.shape == case[prefix + name].shape, name
        part.copy_(case[prefix + name])


def gradients(value: Tensor, named: Named, prefix: str = "grad_") -> dict[str, Tensor]:
    """d value under the official names; zero where nothing leads there, nothing for what is frozen."""
    tensors = list({id(tensor): tensor for tensor, _ in named.values() if tensor.requires_grad}.values())
    if not tensors:
        return {}
    found = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
    by_id = dict(zip(map(id, tensors), found, strict=True))
    return {prefix + name: view(by_id[id(t)]) for name, (t, view) in named.items() if id(t) in by_id}


def outputs_of(module: nn.Module) -> list[Tensor]:
    """A list that receives what the module returns from now on."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda module, given, output: seen.append(output))
    return seen


def experts_of(map_TE: Tensor, top_k: int) -> Tensor:
    """A 0/1 map as the numbers of the experts, [T, K]."""
    return map_TE.nonzero()[:, 1].view(-1, top_k)


@contextmanager
def choosing(*choices_TK: Tensor):
    """Where scores tie, the n-th `topk` takes the n-th stored choice, which must be one of the k largest as well.

    Which of equals is chosen is not portable, and the losses and gradients of a case go with its choice. Rows whose
    k-th and next score differ by more than rounding stay with what our code chooses. Ties are looked for in our own
    scores: `tie_rows` marks no rows of the ablations.
    """
    choose, remaining = torch.Tensor.topk, iter(choices_TK)

    def topk(scores_TE, k, dim=-1, largest=True, sorted=True):
        stored_TK = next(remaining).long()
        assert dim in (-1, 1) and largest
        assert stored_TK.shape == (scores_TE.shape[0], k)
        found = choose(scores_TE, k, dim, largest, sorted)
        if k == scores_TE.shape[1]:
            return found
        rounding = 20 * torch.finfo(scores_TE.dtype).eps * scores_TE.detach().abs().max()
        last_T, next_T = choose(scores_TE.detach(), k + 1, -1).values[:, -2:].unbind(-1)
        tied_T = last_T - next_T <= rounding
        smallest_T = scores_TE.detach().gather(-1, stored_TK).amin(-1)
        assert (smallest_T >= last_T - rounding)[tied_T].all(), "a stored choice is not among the largest"
        indices = torch.where(tied_T[:, None], stored_TK, found.indices)
        return torch.return_types.topk((scores_TE.gather(-1, indices), indices))

    with mock.patch.object(torch.Tensor, "topk", topk):
        yield
    assert next(remaining, None) is None, "fewer calls of topk than stored choices"
