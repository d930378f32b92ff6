"""What is left out of DeepSpeed's step where there is one rank changes no bit."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import ENVIRONMENT

from moe.one_rank import LANES, SMALL, _pieces

STEPS = """
import hashlib
import sys

import torch
from torch import nn

from moe import engine
from moe.ranks import init_ranks

init_ranks(torch.device("cpu"))
if sys.argv[1] == "whole":
    engine.spare_one_rank = lambda *arguments: None
dtype = getattr(torch, sys.argv[2])
torch.manual_seed(0)
wide = [nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.LayerNorm(256), nn.Linear(256, 512)]  # AdamW's own pieces
odd = [nn.Linear(512, 301), nn.ReLU(), nn.LayerNorm(301), nn.Linear(301, 200), nn.Linear(200, 256), nn.Linear(256, 4)]
model = nn.Sequential(*wide, *odd).to(dtype)
made = engine.build_engine(model, batch=4, micro_batch=4, ranks=1, dtype=dtype, clip=0.5, zero_stage=int(sys.argv[3]))
for group in made.optimizer.param_groups:
    group["lr"] = 0.01
for factor in (1e-3, 1e3, 1e-3, 1.0, float("inf"), 1e-3):  # clipped, and not, and skipped where it is not finite
    made.backward(made(torch.randn(4, 8, dtype=dtype)).float().square().mean() * factor)
    made.step()
    masters = made.optimizer.single_partition_of_fp32_groups
    hashed = [hashlib.sha256(), hashlib.sha256()]
    for digest, tensors in zip(hashed, (model.parameters(), masters)):
        for tensor in tensors:
            digest.update(tensor.detach().float().nan_to_num(nan=7.0).numpy().tobytes())
    print("step", factor, float(made.get_global_grad_norm()), *(digest.hexdigest() for digest in hashed))
own, whole = made.optimizer.single_partition_of_fp32_groups[0], made.optimizer.parallel_partitioned_bit16_groups[0][0]
print("one" if own.data_ptr() == whole.data_ptr() else "two", file=sys.stderr)
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["1", "2"])
def test_one_rank_is_spared_copies_and_no_bit_changes(precision, stage, tmp_path):
    (tmp_path / "steps.py").write_text(STEPS)
    line = [sys.executable, str(tmp_path / "steps.py")]
    spared, whole = (
        subprocess.run([*line, how, precision, stage], env=ENVIRONMENT, capture_output=True, text=True)
        for how in ("spared", "whole")
    )
    assert spared.returncode == whole.returncode == 0, spared.stderr + whole.stderr
    one, other = ([line for line in done.stdout.splitlines() if line.startswith("step")] for done in (spared, whole))
    assert one == other and len(one) == 6
    copies = "one" if precision == "float32" and stage == "1" else "two"
    assert spared.stderr.splitlines()[-1] == copies and whole.stderr.splitlines()[-1] == "two"


@given(st.lists(st.one_of(st.integers(1, 200), st.integers(SMALL, SMALL + 200)), max_size=8))
def test_large_gradients_are_not_copied_whatever_lies_between_them(sizes):
    gradients = [torch.arange(n, dtype=torch.float32) + n for n in sizes]
    pieces = _pieces(gradients)
    assert torch.equal(torch.cat([*pieces, torch.empty(0)]), torch.cat([*gradients, torch.empty(0)]))
    assert all(piece.numel() % LANES == 0 for piece in pieces[:-1])  # each begins at a multiple
    copied = sum(p.numel() for p in pieces if all(_apart(p, g) for g in gradients))
    assert copied <= sum(n if n < SMALL else 2 * LANES for n in sizes)


def _apart(one, other):
    return one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
