"""What a fine-tuning promises: what is frozen stays to the bit, the rest moves; exact resume; a run like any other.

As in test_training, trainings run as users run them, in processes of their own.
"""

import json
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from test_training import (
    ENVIRONMENT,
    assert_same_to_rounding,
    checkpoint_folder,
    numbers,
    trained,
    wait_for,
    weights,
    write_spec,
)
from tiny_run import write_corpus

from moe.data.instructions import check_instructions, prepare_instructions
from moe.evaluate import evaluate
from moe.finetune import FROZEN, freeze
from moe.finished import open_run
from moe.model import Decoder
from moe.routers import ROUTERS
from moe.run_columns import CELLS, cell_of
from moe.snapshots import load_model
from moe.tasks import wanted_tasks
from moe.validate import validate

EXAMPLES = [{"instruction": f"Count to {i}.", "input": "now" * (i % 2), "output": "one " * i} for i in range(1, 11)]
OPTIONS = dict(epochs=3, batch=4, steps=7, learning_rate=1e-3, final_learning_rate=0.0, weight_decay=0.0)
OPTIONS |= dict(validate_every=4, checkpoint_every=3, warmup=0.03)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "corpus"
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def instructions(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("instructions")
    (folder / "given.json").write_text(json.dumps(EXAMPLES))
    prepare_instructions(
        check_instructions({"kind": "file", "path": str(folder / "given.json")}), corpus, folder / "set"
    )
    return folder / "set"


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory):
    """A pretrained run of each router, made when first asked for."""
    made = {}

    def run(router="rmoe"):
        if router not in made:
            made[router] = trained(write_spec(tmp_path_factory.mktemp("base"), router), corpus)
        return made[router]

    return run


def write_finetune(folder, base, frozen="nothing", at="half", **training):
    write_spec(folder, base_router(base), **OPTIONS | training)
    spec = yaml.safe_load((folder / "run.yaml").read_text())
    spec |= {"run": "tuned", "snapshots": {at: 1.0}, "finetune": {"base": "tiny", "at": at, "frozen": frozen}}
    (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    return folder


def base_router(base):
    return yaml.safe_load((base / "run.yaml").read_text())["model"]["router"]["name"]


def command(folder, base, instructions, corpus, ranks=1):
    launcher = [sys.executable, "-m", "moe.launch", str(ranks), "moe.finetune", str(folder / "run.yaml")]
    return [*launcher, "--base", str(base), "--instructions", str(instructions), "--corpus", str(corpus)]


def tune(*arguments, **options):
    done = subprocess.run(command(*arguments, **options), env=ENVIRONMENT, capture_output=True, text=True)
    return done.returncode, done.stderr


def tuned(folder, *arguments, **options):
    code, stderr = tune(folder, *arguments, **options)
    assert code == 0, stderr
    return folder


@pytest.mark.parametrize(
    ("router", "frozen", "still"),
    [
        ("rmoe", "nothing", ()),
        ("rmoe", "router", ("router.memory.projectors.", "router.scores.")),
        ("rmoe", "router and cell", ("router.",)),
        ("smoe", "router", ("router.",)),
    ],
)
def test_frozen_parameters_stay_to_the_bit_and_all_others_move(
    router, frozen, still, base, instructions, corpus, tmp_path
):
    folder = tuned(write_finetune(tmp_path / "run", base(router), frozen), base(router), instructions, corpus)
    before, after = weights(base(router), "half"), weights(folder, "half")
    assert before.keys() == after.keys()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith(still)} and (kept or not still)
    losses = [float(row["loss"]) for row in numbers(folder)]
    assert len(losses) == 7 and losses[-1] < losses[0]


def test_a_stopped_and_resumed_fine_tuning_equals_an_undisturbed_one(base, instructions, corpus, tmp_path):
    arguments = (base(), instructions, corpus)
    whole = tuned(write_finetune(tmp_path / "whole", base(), "router"), *arguments)
    folder = write_finetune(tmp_path / "run", base(), "router")
    process = subprocess.Popen(command(folder, *arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for(process, folder, "lock")
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 75, stderr
    assert not (folder / "done.json").exists() and list(checkpoint_folder(folder).glob("step-*"))
    tuned(folder, *arguments)
    assert numbers(folder) == numbers(whole)
    mine, other = weights(folder, "half"), weights(whole, "half")
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize(("ranks", "change"), [(1, dict(micro_batch=1)), (2, {}), (2, dict(expert_ranks=2))])
def test_numbers_do_not_depend_on_how_the_batch_is_split(ranks, change, base, instructions, corpus, tmp_path):
    """The loss is a mean over all responses' tokens; ReLU's λ is too small for its loss a micro-batch to show."""
    whole = tuned(write_finetune(tmp_path / "whole", base("relu"), at="all"), base("relu"), instructions, corpus)
    folder = write_finetune(tmp_path / "run", base("relu"), at="all", **change)
    tuned(folder, base("relu"), instructions, corpus, ranks=ranks)
    if ranks == 2:
        assert_same_to_rounding(folder, whole)
    for mine, other in zip(numbers(folder), numbers(whole), strict=True):
        for key in ("loss", "sparsity", "l1_lambda", "tokens"):
            assert float(mine[key]) == pytest.approx(float(other[key]), rel=1e-3), (mine["step"], key)


def test_a_fine_tuned_run_is_validated_and_evaluated_as_any_other(base, instructions, corpus, tmp_path):
    folder = tuned(write_finetune(tmp_path / "run", base(), at="half"), base(), instructions, corpus)
    done = json.loads((folder / "done.json").read_text())
    assert done["base"] == {
        "run": "tiny",
        "snapshot": "half",
        "sha256": json.loads((base() / "done.json").read_text())["snapshots"]["half"]["sha256"],
    }
    assert list(done["snapshots"]) == ["half"] and done["steps"] == 7
    assert done["tokens"] == int(numbers(folder)[-1]["tokens"])
    run = open_run(folder, corpus)
    (row,) = [r for r in validate(run)[0]]
    assert row["snapshot"] == "half" and row["loss"] > 0
    wanted = wanted_tasks({"local": ["local_cloze/acc"]}, corpus, {}, required=False)
    scores, _ = evaluate(run, wanted, limit=4)
    assert [(s["run"], s["task"], s["documents"]) for s in scores] == [("tuned", "local_cloze", 4)]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("snapshot", "there is no snapshot 'none', only all, half"),
        ("model", "its model is not that of"),
        ("corpus", "is in the tokens of a corpus with fingerprint"),
        ("set", "tokens.npy: is missing or altered"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(spoil, says, base, instructions, corpus, tmp_path):
    folder = write_finetune(tmp_path / "run", base(), at="none" if spoil == "snapshot" else "half")
    if spoil == "model":
        spec = yaml.safe_load((folder / "run.yaml").read_text())
        spec["model"]["router"]["state"] = 4
        (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    if spoil in ("corpus", "set"):
        copied = tmp_path / "set"
        copied.mkdir()
        for file in instructions.iterdir():
            (copied / file.name).write_bytes(file.read_bytes())
        if spoil == "set":
            (copied / "tokens.npy").unlink()
        else:
            manifest = json.loads((copied / "manifest.json").read_text())
            (copied / "manifest.json").write_text(json.dumps(manifest | {"corpus": "another"}))
        instructions = copied
    code, stderr = tune(folder, base(), instructions, corpus)
    assert code == 2 and says in stderr and "Traceback" not in stderr, stderr


def test_other_instructions_or_another_base_start_anew(base, instructions, corpus, tmp_path):
    folder = tuned(write_finetune(tmp_path / "run", base(), at="half"), base(), instructions, corpus)
    first = checkpoint_folder(folder).name
    (tmp_path / "given.json").write_text(json.dumps(EXAMPLES[1:]))
    definition = check_instructions({"kind": "file", "path": str(tmp_path / "given.json")})
    prepare_instructions(definition, corpus, tmp_path / "set")
    tuned(folder, base(), tmp_path / "set", corpus)
    assert checkpoint_folder(folder).name != first
    assert load_model(folder, "half")[1]["run"] == "tuned"


def test_the_variants_freeze_what_they_say():
    model = Decoder(
        vocabulary=20, width=8, layers=2, heads=2, kv_heads=2, expert_width=8, experts=4, top_k=2,
        router={"name": "rmoe", "state": 4},
    )  # fmt: skip
    for variant in FROZEN:
        model.requires_grad_(True)
        freeze(model, variant)
        still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        cell = {name for name, _ in model.named_parameters() if name.startswith("router.memory.cell.")}
        routing = {name for name, _ in model.named_parameters() if name.startswith("router.")}
        assert still == {"nothing": set(), "router": routing - cell, "router and cell": routing}[variant]


def test_cells_named_in_the_tables_are_those_of_the_routers():
    for name, recipe in ROUTERS.items():
        cell = recipe["memory"].cell_type.__name__.removesuffix("Cell") if "memory" in recipe else ""
        assert cell_of(name) == cell
    assert set(CELLS) <= set(ROUTERS)
