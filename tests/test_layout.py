"""What a training is expected to take: laws of the estimate, the model's own tensors, the papers' hours, the docs."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.accounting import parameter_counts
from moe.expected import (
    MACHINES,
    PROCESS_MB,
    mb_read,
    mb_trained,
    minutes_read,
    minutes_trained,
    row_of,
    scaling_table,
    with_table,
    write,
)
from moe.layout import USABLE, activations, best, estimate, layouts, sizes_of
from moe.snapshots import build_model
from moe.table_files import load_yaml
from moe.tables import Tables

ROOT = Path(__file__).parent.parent
CONFIG = load_yaml(ROOT / "config/config.yaml") | {"tables": str(ROOT / "config"), "scale": "paper"}


@pytest.fixture(scope="module")
def tables():
    return Tables(CONFIG, ROOT / "workflow/schemas")


@pytest.mark.parametrize(
    "run", ["remoe-182m-relu", "remoe-182m-dense", "rmoe-15b-120b-rmoe", "rmoe-enwik8-medium-rmoe"]
)
def test_sizes_are_those_of_the_model(tables, run):
    spec = tables.spec(run)
    with torch.device("meta"):
        counts = parameter_counts(build_model(spec))
    sizes = sizes_of(spec)
    assert sizes.shared + sizes.routed == counts["parameters"]
    model = spec["model"]
    idle = 0 if run.endswith("dense") else 1 - model["top_k"] / model["experts"]
    assert counts["active_parameters"] == pytest.approx(counts["parameters"] - idle * sizes.routed)


@given(
    run=st.sampled_from(["remoe-182m-topk", "remoe-469m-relu", "rmoe-900m-smoe", "rmoe-enwik8-small-rmoe"]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_laws_of_an_estimate(tables, run, data):
    spec, hardware = tables.spec(run), tables.hardware_named(data.draw(st.sampled_from(MACHINES)))
    ranks = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    split = list(layouts(spec, ranks))
    if not split:
        assert spec["training"]["batch"] % ranks
        return
    expert_ranks, micro_batch = data.draw(st.sampled_from(split))
    one = estimate(spec, hardware, ranks, expert_ranks, micro_batch)
    assert spec["training"]["batch"] % (ranks * micro_batch) == 0 == ranks % expert_ranks
    assert one.fits == (one.memory_gib <= USABLE * hardware.memory_gib)
    assert not one.fits or one.seconds == pytest.approx(sum(one.parts.values()))
    assert one.sent_gb == 0 if ranks == 1 else one.sent_gb > 0
    sizes = sizes_of(spec)
    assert one.memory_gib * 2**30 > (sizes.shared + sizes.routed) * 16 / ranks  # all of it lies somewhere
    model, training = spec["model"], spec["training"]
    assert activations(model, training, 2 * micro_batch) > activations(model, training, micro_batch)
    found = best(spec, hardware, ranks)
    assert not one.fits or found.seconds <= one.seconds


def test_activations_are_about_what_autograd_keeps():
    """Of a block that is not redone; a factor of 1.5, since kernels keep what suits them."""
    model = dict(vocabulary=64, width=64, layers=3, heads=4, kv_heads=2, expert_width=256, init_std=0.02)
    model |= dict(experts=8, top_k=1, granularity=1, router={"name": "topk"})
    batch, sequence, kept = 4, 64, {}
    built = build_model({"model": model})
    own = {p.untyped_storage().data_ptr() for p in built.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() / 4
        return tensor

    tokens = torch.randint(64, (batch, sequence))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = built(tokens, tokens)
    attention = 3 * batch * 4 * sequence**2 / 2  # weights, which a CPU keeps and a GPU's kernel does not
    measured = sum(kept.values()) - attention
    expected = activations(model, {"sequence": sequence}, batch) - 2**27 * 2
    assert loss.item() > 0 and 1 / 1.5 < expected / measured < 1.5


def test_the_hours_that_the_paper_prints(tables):
    """ReMoE's table 6: 469M, 120B tokens, 8 A100; the shares of the peak are those of its table 7."""
    printed = pd.read_csv(ROOT / "config/reported/remoe_table6.csv").query("model == 'MoE' and stage == 'total'")
    row = row_of(tables.spec("remoe-469m-120b-topk"), tables.hardware_named("a100-8"), 8)
    assert row["hours"] == pytest.approx(printed["value"].item(), rel=0.15)


def test_what_jobs_ask_for_is_computed_from_the_run(tables):
    spec, hardware = tables.spec("remoe-978m-relu"), tables.hardware_named("a100-8")
    row, sizes = row_of(spec, hardware, 8), sizes_of(spec)
    assert minutes_trained(spec, hardware, 8) == 30 + int(90 * row["hours"])
    tokens = spec["training"]["batch"] * spec["training"]["sequence"]  # of a step: a third of its seconds on 8 GPUs
    assert minutes_read(spec, hardware, 8, 3000 * tokens) == 30 + int(1.5 * 1000 * 8 * row["seconds_a_step"] / 60)
    assert mb_read(spec) == PROCESS_MB + int(8 * sum(sizes) / 2**20)
    assert mb_trained(spec, 1, gpus=False) == PROCESS_MB + int(24 * sum(sizes) / 2**20)
    assert mb_trained(spec, 8, gpus=True) == PROCESS_MB + int(6 * sum(sizes) / 2**20)
    spread = spec | {"training": spec["training"] | {"expert_ranks": 8}}
    assert mb_trained(spread, 8, gpus=True) < mb_trained(spec, 8, gpus=True)
    tuned = tables.spec("rmoe-900m-smoe-20b-sft")
    assert minutes_trained(tuned, hardware, 8) is None, "instructions decide its steps"
    assert minutes_read(tuned, hardware, 8, 10**6) >= 30


def test_a_run_that_fits_nowhere_is_said_and_refused(tables, tmp_path):
    spec, hardware = tables.spec("rmoe-15b-120b-smoe"), tables.hardware_named("a100-8")
    assert best(spec, hardware, 2) is None
    text = write([spec, tables.spec("remoe-182m-topk")], [1, 3], hardware, 2, tmp_path / "cost.csv")
    assert "4 trainings" in text and "they fit in no way: rmoe-15b-120b-smoe." in text
    assert "The longest job is remoe-182m-topk" in text
    assert pd.read_csv(tmp_path / "cost.csv")["hours"].isna().tolist() == [True, False]
    with pytest.raises(
        ValueError, match="key hardware: run rmoe-15b-120b-smoe fits in no way into 2 × 80 GiB of a100-8"
    ):
        Tables(CONFIG | {"hardware": "a100-8", "ranks": 2}, ROOT / "workflow/schemas").spec("rmoe-15b-120b-smoe")


def test_runs_are_split_as_estimated():
    some = Tables(CONFIG | {"hardware": "h100-8", "ranks": 8}, ROOT / "workflow/schemas")
    spec = some.spec("rmoe-15b-120b-rmoe")
    found = best(spec, some.hardware, 8)
    assert math.isfinite(found.seconds) and found.expert_ranks > 1  # 15B parameters do not fit on one GPU
    assert {k: spec["training"][k] for k in ("micro_batch", "expert_ranks")} == {
        "micro_batch": found.micro_batch,
        "expert_ranks": found.expert_ranks,
    }


def test_the_page_on_scaling_says_what_the_code_says(tables):
    page = (ROOT / "docs/scaling.md").read_text()
    assert with_table(page, scaling_table(tables, MACHINES)) == page, "renew it: python -m moe.expected docs/scaling.md"
