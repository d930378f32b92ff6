"""A checkpoint gone on from by another number of ranks.

Trainings run as users run them, in processes of their own (helpers of test_training).
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_streaming import write_spec as write_span_spec
from test_training import (
    ENVIRONMENT,
    assert_same_to_rounding,
    checkpoint_folder,
    corpus,  # noqa: F401 (a fixture)
    interrupted,
    train,
    trained,
    undisturbed,  # noqa: F401 (a fixture)
    write_spec,
)

from moe import repartition

SAVED_AGAIN = """
import sys
from pathlib import Path
import yaml
from moe.data import Corpus
from moe.ranks import end_rank
from moe.training import Training

folder, corpus, precision, output = sys.argv[1:]
training = Training(yaml.safe_load(Path(folder, "run.yaml").read_text()), Path(folder), Corpus(corpus), precision)
assert training._resume() == 6
training.engine.save_checkpoint(output, tag="engine", save_latest=False)
end_rank(0)
"""


def cut_short(folder, corpus, ranks):  # noqa: F811
    """A training as a machine that is lost after step 6 of 12 leaves it; its checkpoint of that step."""
    spec = yaml.safe_load((folder / "run.yaml").read_text())
    spec["training"]["checkpoint_every"] = 6
    (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    trained(folder, corpus, ranks)
    shutil.rmtree(checkpoint_folder(folder) / "step-00000012")
    for name in ("done.json", "metrics.csv"):
        (folder / name).unlink()
    return checkpoint_folder(folder) / "step-00000006"


PROMISE = "A checkpoint gone on from by another number of ranks: the same numbers to rounding"


@pytest.mark.promise(PROMISE)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_other_ranks_go_on_with_a_training(before, after, undisturbed, corpus, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run")
    cut_short(folder, corpus, before)
    code, stderr = train(folder, corpus, after)
    assert code == 0 and "from step 6" in stderr, stderr
    assert json.loads((folder / "done.json").read_text())["ranks"] == after
    assert_same_to_rounding(folder, undisturbed("relu"))


@pytest.mark.promise(PROMISE)
def test_other_ranks_go_on_after_a_signal(undisturbed, corpus, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run")
    code, stderr = interrupted(folder, corpus, after=0, ranks=2)
    assert code == 75, stderr
    assert_same_to_rounding(trained(folder, corpus), undisturbed("relu"))


@pytest.mark.promise(PROMISE)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_other_ranks_go_on_with_what_streams_remember(before, after, corpus, tmp_path):  # noqa: F811
    def spec_of(name):
        folder = write_span_spec(tmp_path / name, learning_rate=5e-3, final_learning_rate=5e-3)
        spec = yaml.safe_load((folder / "run.yaml").read_text())
        spec["model"] |= {"dropout": 0.0}  # drawn on each rank
        (folder / "run.yaml").write_text(yaml.safe_dump(spec))
        return folder

    folder, whole = spec_of("run"), trained(spec_of("whole"), corpus)
    cut_short(folder, corpus, before)
    assert_same_to_rounding(trained(folder, corpus, after), whole, 2e-3)


@pytest.mark.promise("Experts spread over ranks and a checkpoint of other ranks: refused in one sentence, nothing lost")
def test_other_ranks_are_refused_where_experts_are_spread(undisturbed, corpus, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", expert_ranks=2)
    checkpoint = cut_short(folder, corpus, 2)
    code, stderr = train(folder, corpus, 4)
    assert code == 2 and "Traceback" not in stderr, stderr
    (said,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert said == (
        f"error: {checkpoint}: was made by 2 ranks with experts spread over them, this run has 4; go on with ranks=2, "
        "or delete the folder to start anew"
    )
    assert_same_to_rounding(trained(folder, corpus, 2), undisturbed("relu"))


@pytest.mark.promise("A checkpoint gone on from by another number of ranks: weights and optimiser to the bit")
@pytest.mark.parametrize(
    ("before", "after", "precision", "change"),
    [
        (2, 4, "float32", {}),
        (4, 1, "float32", dict(zero_stage=2)),
        (1, 2, "bfloat16", dict(zero_stage=2)),
        (2, 1, "bfloat16", dict(micro_batch=2)),  # one rank sums two micro-batches, for which DeepSpeed has a class
        (1, 2, "bfloat16", dict(micro_batch=2)),
    ],
)
def test_other_ranks_restore_weights_and_optimiser_to_the_bit(before, after, precision, change, corpus, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", precision=precision, **change)
    checkpoint, output = cut_short(folder, corpus, before) / "engine", tmp_path / "again"
    (tmp_path / "saved_again.py").write_text(SAVED_AGAIN)
    words = [sys.executable, "-m", "moe.launch", str(after), "saved_again", str(folder), str(corpus), precision]
    paths = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    done = subprocess.run([*words, str(output)], env=ENVIRONMENT | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made, again = rows_of(checkpoint, before), rows_of(output / "engine", after)
    assert made.keys() == again.keys() and len(made) == 2 * 4  # two groups: weights, two moments, steps
    for key, row in made.items():
        both = min(row.numel(), again[key].numel())
        assert torch.equal(row[:both], again[key][:both]), key
        assert not row[both:].any() and not again[key][both:].any(), key
        assert row.any(), key
    weights, others = model_of(checkpoint), model_of(output / "engine")
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights if torch.is_tensor(weights[name]))


def rows_of(engine, ranks):
    """(group, name) -> the numbers of all ranks in order."""
    pieces = repartition.pieces(engine)
    assert len(pieces) == ranks
    rows = {}
    for i, state in pieces[0][repartition.STATE]["state"].items():
        rows[i, "weights"] = torch.cat([piece[repartition.MASTER][i].detach() for piece in pieces])
        for name, value in state.items():
            parts = [piece[repartition.STATE]["state"][i][name] for piece in pieces]
            rows[i, name] = torch.cat(parts) if value.ndim else torch.stack(parts).unique()
    return rows


def model_of(engine):
    """The model's own weights and what its modules keep besides."""
    return torch.load(engine / "mp_rank_00_model_states.pt", weights_only=True)["module"]


@given(
    numbers_=st.integers(1, 40),
    before=st.integers(1, 6),
    after=st.integers(1, 6),
    padded=st.booleans(),
)
def test_a_row_cut_anew_is_the_same_row(numbers_, before, after, padded):
    """Also where it is shorter than its padding, so that the last ranks have nothing of it."""
    row = torch.arange(1.0, numbers_ + 1)

    def size(ranks):  # as DeepSpeed aligns it
        return -(-numbers_ // (2 * ranks)) * 2

    filled = torch.cat([row, torch.zeros(size(before) * before - numbers_)])
    cut = list(filled.split(size(before)))
    if not padded:  # master weights are saved without their padding
        cut = [piece[: max(0, numbers_ - i * size(before))] for i, piece in enumerate(cut)]
    parts = torch.cat([repartition.part_of(cut, size(after), rank) for rank in range(after)])
    assert torch.equal(parts[:numbers_], row) and not parts[numbers_:].any()
