"""The official code's inputs and outputs (tests/golden): which test compares which group, and that none is left out.

Each case of a group is one test, whose name says group and case; it fails unless it compares every stored output and
gradient, in every precision that is stored. GOLDEN_VECTORS names another folder of the same layout to try instead.
"""

import hashlib
import importlib
import json

import golden_cases
import pytest
import torch
from golden_cases import CLAIMS, OWN, ROOT, Case, cases  # noqa: F401 (for test_span)
from golden_cases import loaded_case as case  # noqa: F401

# group -> the test that compares its cases
CHECKED_BY = {
    "remoe/relu_router": "test_golden_remoe.py::test_relu_router",
    "remoe/topk_router": "test_golden_remoe.py::test_topk_router",
    "remoe/lambda_schedule": "test_golden_remoe.py::test_lambda_schedule",
    "remoe/sparsity_average": "test_golden_remoe.py::test_sparsity_average",
    "remoe/train_step": "test_golden_remoe.py::test_train_step",
    "remoe/moe_layer": "test_golden_remoe.py::test_remoe_layer",
    "rmoe/gru_cell": "test_golden_rmoe.py::test_cell",
    "rmoe/rnn_cell": "test_golden_rmoe.py::test_cell",
    "rmoe/block": "test_golden_rmoe.py::test_router_over_layers_and_its_ablations",
    "rmoe/moe_layer": "test_golden_rmoe.py::test_rmoe_layer",
    "rmoe/aux_loss": "test_golden_rmoe.py::test_rmoe_balance_loss_is_k_times_ours_over_all_layers",
    "rmoe/hf_model": "test_golden_rmoe.py::test_rmoe_decoder",
    "competesmoe/smoe_gate": "test_golden_gates.py::test_smoe_gate_with_bias",
    "competesmoe/xmoe_gate": "test_golden_gates.py::test_xmoe_and_cosine_gates",
    "competesmoe/stablemoe_gate": "test_golden_gates.py::test_xmoe_and_cosine_gates",
    "competesmoe/hyperrouter_gate": "test_golden_gates.py::test_hypernetwork_gate",
    "competesmoe/random_gate": "test_golden_gates.py::test_random_gate",
    "competesmoe/dropout_gate": "test_golden_gates.py::test_dropout_gate",
    "competesmoe/topk_schedule": "test_golden_gates.py::test_schedule_of_k",
    "competesmoe/moe_layer": "test_span.py::test_public_layer",
}
# Cases whose scores no router of ours makes: only the choice and the weights, from recorded scores, are ours.
# competesmoe/dropout_gate and random_gate/uniform_*: dropout on the scores and fresh random ones a call are
# SMoE-Dropout's and CompeteSMoE's, in neither paper's tables (RandomSMoE is the frozen map, random_gate/frozen_*).


def listed():
    """The cases that the manifest lists."""
    return [entry["case"] for entry in json.loads((ROOT / "MANIFEST.json").read_text())["list"]]


def test_stored_vectors_are_whole():
    for entry in json.loads((ROOT / "MANIFEST.json").read_text())["list"]:
        for suffix, key in ((".safetensors", "sha256_safetensors"), (".json", "sha256_json")):
            content = (ROOT / (entry["case"] + suffix)).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry[key], entry["case"]
    assert sorted(listed()) == sorted(str(p.relative_to(ROOT).with_suffix("")) for p in ROOT.glob("*/*/*.safetensors"))


def test_exactly_one_test_takes_every_case():
    for name in sorted({claim.split(".py::")[0] for claim in CHECKED_BY.values()}):
        importlib.import_module(name)
    assert {group: [claim] for group, claim in CHECKED_BY.items()} == CLAIMS
    unclaimed = [one for one in listed() if one.rsplit("/", 1)[0] not in CHECKED_BY]
    assert not unclaimed, f"no test takes {', '.join(unclaimed)}"
    taken = []
    for claim in sorted(set(CHECKED_BY.values())):
        module, name = claim.split(".py::")
        (mark,) = getattr(importlib.import_module(module), name).pytestmark
        taken += mark.kwargs["ids"]
    assert sorted(taken) == sorted(listed())
    if ROOT == OWN:  # another folder may hold less
        assert {one.rsplit("/", 1)[0] for one in listed()} == set(CHECKED_BY)


@pytest.mark.parametrize("name", listed())
def test_a_comparison_notices_a_change(name):
    """One element of each stored result off by thrice its tolerance, or by 1 where equality is asked for."""
    stored = Case(ROOT / f"{name}.json")
    for result in sorted(stored.results):
        meta, reference = stored.meta["tensors"][result], stored[result].double()
        stored.check(result, reference)
        flat = reference.flatten().clone()
        place = flat.abs().argmax()
        bound = 1.0 if meta["compare"] == "exact" else meta["rel"] * flat[place].abs() + meta.get("abs", 0.0)
        flat[place] += 3 * bound or 1e-30
        for changed in (flat, torch.full_like(flat, torch.nan)):
            with pytest.raises(AssertionError):
                stored.check(result, changed)


def test_a_result_left_out_is_named():
    stored = Case(ROOT / f"{listed()[0]}.json")
    first, *others = sorted(stored.results)
    for result in others:
        stored.check(result, stored[result])
    with pytest.raises(AssertionError, match=f"{stored.meta['case']}: never compared: {first}$"):
        stored.finish()


def test_a_stored_choice_counts_among_equals_alone():
    scores = torch.tensor([[3.0, 1.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    with golden_cases.choosing(torch.tensor([[0, 2], [0, 2]])):
        assert scores.topk(2).indices.tolist() == [[0, 2], [0, 1]]  # the second row has no equals
    with pytest.raises(AssertionError, match="not among the largest"), golden_cases.choosing(torch.tensor([[0, 3]])):
        scores[:1].topk(2)
    with pytest.raises(AssertionError, match="fewer calls"), golden_cases.choosing(torch.tensor([[0, 2]])):
        pass
