"""What a training promises: exact resume, the same numbers however it is split, checkpoints that survive faults.

Trainings run as users run them, `python -m moe.train`, in processes of their own.
"""

import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import write_corpus

from moe import checkpoints
from moe.data import Corpus, Windows
from moe.health import Health
from moe.outcome import penalty_facts, penalty_warnings
from moe.routers import ROUTERS
from moe.snapshots import build_model, load_model

ROOT = Path(__file__).parent.parent
TIMED = {"tokens_per_second", "mfu", "memory_gib", "seconds"}
MODEL = dict(vocabulary=272, width=16, layers=2, heads=2, kv_heads=1, expert_width=16, init_std=0.1)
SCHEDULE = dict(
    steps=12, sequence=16, batch=4, learning_rate=5e-3, final_learning_rate=5e-4, warmup=0.2,
    validate_every=6, validate_windows=4, checkpoint_every=5,
)  # fmt: skip


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "corpus"
    write_corpus(folder)
    return folder


def write_spec(folder, router="relu", fingerprint="0123456789abcdef", options=None, **training):
    folder.mkdir(parents=True, exist_ok=True)
    experts = dict(experts=1, top_k=1) if router == "none" else dict(experts=4, top_k=2)
    options = options or ({"state": 8} if router in ROUTERS and "memory" in ROUTERS[router] else {})
    spec = dict(
        run="tiny", scale="test", setup="tiny", seed=0, fingerprint=fingerprint, snapshots={"all": 1.0, "half": 0.5}
    )
    spec |= {"model": MODEL | experts | {"router": {"name": router} | options}, "training": SCHEDULE | training}
    (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    return folder


def command(folder, corpus, ranks=1):
    launcher = [sys.executable, "-m", "moe.launch", str(ranks), "moe.train"]
    return [*launcher, str(folder / "run.yaml"), "--corpus", str(corpus)]


ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {
    "PYTHONPATH": str(ROOT / "workflow"),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def train(folder, corpus, ranks=1):
    done = subprocess.run(command(folder, corpus, ranks), env=ENVIRONMENT, capture_output=True, text=True)
    return done.returncode, done.stderr


def trained(folder, corpus, ranks=1):
    code, stderr = train(folder, corpus, ranks)
    assert code == 0, stderr
    return folder


def numbers(folder):
    """Rows of metrics.csv without what depends on the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def weights(folder, label="all"):
    return load_file(folder / json.loads((folder / "done.json").read_text())["snapshots"][label]["file"])


def assert_same_to_the_bit(a, b):
    assert numbers(a) == numbers(b)
    for label in ("half", "all"):
        mine, other = weights(a, label), weights(b, label)
        assert mine.keys() == other.keys() and all((mine[k] == other[k]).all() for k in mine)


def assert_same_to_rounding(a, b, relative=2e-4):
    for mine, other in zip(numbers(a), numbers(b), strict=True):
        for key, value in mine.items():
            if value:
                assert float(value) == pytest.approx(float(other[key]), rel=relative, abs=1e-7), (mine["step"], key)
    mine, other = weights(a), weights(b)
    assert all((mine[k] - other[k]).norm() <= 1e-3 * mine[k].norm() + 1e-6 for k in mine)


@pytest.fixture(scope="session")
def undisturbed(corpus, tmp_path_factory):
    """One whole run per router, made when first asked for."""
    made = {}

    def run(router="relu"):
        if router not in made:
            made[router] = trained(write_spec(tmp_path_factory.mktemp(router), router), corpus)
        return made[router]

    return run


def interrupted(folder, corpus, after, number=signal.SIGTERM, ranks=1):
    """Start a training, send a signal once it has a checkpoint of step `after` (0: at once); exit code and stderr."""
    process = subprocess.Popen(command(folder, corpus, ranks), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    # one rank listens for signals before it takes its lock; several do once the record is begun
    early = "lock" if ranks == 1 else "metrics.csv"
    wait_for(process, folder, f"step-{after:08d}" if after else early)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    return process.returncode, stderr


def wait_for(process, folder, name):
    """Until the run's checkpoint folder holds a file, or the process has ended."""
    limit = time.time() + 60
    while time.time() < limit and process.poll() is None and not list(folder.glob(f"checkpoints/*/{name}")):
        time.sleep(0.005)


def checkpoint_folder(folder):
    """Where a run's checkpoints lie."""
    (found,) = (folder / "checkpoints").iterdir()
    return found


def one_of_each_part():
    """Routers that together have every part: the others are the same classes with other options."""
    seen, chosen = set(), ["none"]
    for name, recipe in ROUTERS.items():
        parts = {part for part in recipe.values() if isinstance(part, type)}
        if parts - seen:
            chosen.append(name)
        seen |= parts
    return chosen


@pytest.mark.promise("SIGTERM and the same command again: every part of a router goes on to the bit")
@pytest.mark.parametrize("router", one_of_each_part())
def test_a_stopped_and_resumed_run_equals_an_undisturbed_one(router, undisturbed, corpus, tmp_path):
    folder = write_spec(tmp_path / "run", router)
    code, stderr = interrupted(folder, corpus, after=0)
    assert code == 75, stderr
    assert_same_to_the_bit(trained(folder, corpus), undisturbed(router))


@pytest.mark.parametrize("every", [1, 4])
def test_measuring_flips_disturbs_no_training_and_resumes_exactly(every, undisturbed, corpus, tmp_path):
    whole = trained(write_spec(tmp_path / "whole", flip_every=every), corpus)
    for plain, watched in zip(numbers(undisturbed("relu")), numbers(whole), strict=True):
        rate = watched.pop("flip_rate")
        assert watched == plain
        assert (0 <= float(rate) <= 1) if int(plain["step"]) % every == 0 else rate == ""
    folder = write_spec(tmp_path / "run", flip_every=every)
    code, stderr = interrupted(folder, corpus, after=0)
    assert code == 75, stderr
    assert_same_to_the_bit(trained(folder, corpus), whole)


WATCHED = dict(similarity_points=3, gradient_points=[0.0, 0.5, 1.0], gradient_steps=2)
MEASURED = ("similarity_0", "similarity_1", "router_gradient", "router_gradient_lm", "drop_ratio")


def measured(folder):
    """Column -> {step: value} of what was measured now and then."""
    rows = numbers(folder)
    return {name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in MEASURED}


@pytest.mark.parametrize("router", ["relu", "rmoe"])
def test_measuring_experts_and_gradients_disturbs_no_training_and_resumes_exactly(
    router, undisturbed, corpus, tmp_path
):
    whole = trained(write_spec(tmp_path / "whole", router, **WATCHED), corpus)
    for plain, watched in zip(numbers(undisturbed(router)), numbers(whole), strict=True):
        assert {key: value for key, value in watched.items() if key not in MEASURED} == plain
    mine, other = weights(whole), weights(undisturbed(router))
    assert all((mine[key] == other[key]).all() for key in other)
    for name, found in measured(whole).items():
        assert list(found) == ([4, 8, 12] if name.startswith("similarity") else [1, 2, 5, 6, 11, 12])
        assert all(math.isfinite(value) and value >= 0 for value in found.values())
    folder = write_spec(tmp_path / "run", router, **WATCHED)
    code, stderr = interrupted(folder, corpus, after=0)
    assert code == 75, stderr
    assert_same_to_the_bit(trained(folder, corpus), whole)


@pytest.mark.parametrize(("ranks", "change"), [(1, dict(micro_batch=2)), (2, {}), (2, dict(expert_ranks=2))])
def test_what_is_measured_does_not_depend_on_how_the_work_is_split(ranks, change, corpus, tmp_path):
    whole = measured(trained(write_spec(tmp_path / "one", "smoe", **WATCHED), corpus))
    split = measured(trained(write_spec(tmp_path / "other", "smoe", **(WATCHED | change)), corpus, ranks))
    for name in MEASURED:
        # the balance loss, and so the training, is by micro-batch; of 256 assignments a near tie may go the other way
        loose = {"rel": 0.02} if name.startswith("router") else {"rel": 2e-3, "abs": 0.01 if "drop" in name else 1e-6}
        assert split[name] == pytest.approx(whole[name], **loose), name


def test_usr1_checkpoints_and_asks_to_be_requeued(corpus, tmp_path):
    folder = write_spec(tmp_path / "run", steps=4000, checkpoint_every=10_000)
    code, stderr = interrupted(folder, corpus, after=0, number=signal.SIGUSR1)
    assert code == 75, stderr
    (newest,) = checkpoint_folder(folder).glob("step-*")
    assert checkpoints.broken(newest) is None and not (folder / "done.json").exists()


@pytest.mark.promise("SIGKILL at random moments, also within the writing of a checkpoint: the same files")
@pytest.mark.parametrize("attempt", range(2))
def test_a_run_killed_at_random_moments_ends_with_the_same_files(
    attempt, undisturbed, corpus, tmp_path, record_property
):
    folder, draw, killed = write_spec(tmp_path / "run", checkpoint_every=1), random.Random(attempt), 0
    for after in (2, 5, 8):  # with a checkpoint a step, a moment later is likely to be within the writing of one
        process = subprocess.Popen(command(folder, corpus), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        wait_for(process, folder, f"step-{after:08d}")
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    record_property("kills", killed)
    assert killed >= 2, "the kills came too late to mean anything"
    trained(folder, corpus)
    assert_same_to_the_bit(folder, undisturbed("relu"))


@pytest.mark.parametrize(
    ("name", "ranks", "change"),
    [
        ("micro-batches", 1, dict(micro_batch=2)),
        ("data-parallel ranks", 2, dict()),
        ("expert-parallel ranks", 2, dict(expert_ranks=2)),
        ("data-parallel ranks, ZeRO-2", 2, dict(zero_stage=2)),
        ("expert-parallel ranks, ZeRO-2", 2, dict(expert_ranks=2, zero_stage=2)),
        ("four data-parallel ranks", 4, dict()),
        ("four expert-parallel ranks", 4, dict(expert_ranks=4)),
        ("four ranks, two of experts", 4, dict(expert_ranks=2)),
        ("four ranks, two of experts, ZeRO-2", 4, dict(expert_ranks=2, zero_stage=2)),
    ],
)
@pytest.mark.parametrize("router", ["relu", "topk"])
def test_numbers_do_not_depend_on_how_the_batch_is_split(name, ranks, change, router, undisturbed, corpus, tmp_path):
    if name == "micro-batches" and router == "topk":
        pytest.skip("a balance loss is the mean of its micro-batches', another function: the next test")
    folder, whole = trained(write_spec(tmp_path / "run", router, **change), corpus, ranks), undisturbed(router)
    if name == "micro-batches":  # λ is tiny, so that f per micro-batch does not show
        for mine, other in zip(numbers(folder), numbers(whole), strict=True):
            for key in ("loss", "sparsity", "l1_lambda"):
                assert float(mine[key]) == pytest.approx(float(other[key]), rel=1e-4), (mine["step"], key)
    else:
        assert_same_to_rounding(folder, whole)


@pytest.mark.parametrize(
    ("router", "options"),
    [
        ("topk", {"balance": 0.5}),
        ("relu", {"lambda_0": 0.3}),
        ("smoe", {"balance": 0.5}),
        ("sparsemixer-v2", {"balance": 0.5}),
        ("rmoe", {"balance": 0.5, "state": 8}),
    ],
)
def test_a_step_over_micro_batches_is_the_mean_of_theirs(router, options, corpus, tmp_path):
    folder = trained(write_spec(tmp_path / "run", router, options=options, steps=1, micro_batch=2), corpus)
    row, spec = numbers(folder)[0], yaml.safe_load((folder / "run.yaml").read_text())
    torch.manual_seed(spec["seed"])
    model = build_model(spec).train()
    batch = torch.from_numpy(Windows(Corpus(corpus), "train", 16, 4, spec["seed"]).at(0))
    torch.manual_seed(spec["seed"] * 1_000_003 * 1009)
    losses = [model(part[:, :-1], part[:, 1:]) for part in batch.split(2)]
    loss, router_loss = (sum(parts) / 2 for parts in zip(*losses, strict=True))
    (loss + router_loss).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    statistics = model.after_step()
    expected = {"loss": loss, "router_loss": router_loss, "gradient_norm": norm, "sparsity": statistics["sparsity"]}
    for key, value in expected.items():
        assert float(row[key]) == pytest.approx(float(value), rel=1e-4), key
    whole = model(batch[:, :-1], batch[:, 1:])[1]  # another function of the batch, or this would show nothing
    assert abs(float(row["router_loss"]) - float(router_loss)) < abs(float(whole - router_loss)) / 10


@pytest.mark.parametrize(
    ("ranks", "change"),
    [(1, dict(precision="bfloat16")), (2, {}), (2, dict(expert_ranks=2)), (2, dict(expert_ranks=2, zero_stage=2))],
    ids=["bfloat16", "data-parallel", "expert-parallel", "expert-parallel, ZeRO-2"],
)
def test_every_kind_of_engine_resumes_exactly(ranks, change, corpus, tmp_path):
    whole = trained(write_spec(tmp_path / "whole", "rmoe", **change), corpus, ranks)
    folder = write_spec(tmp_path / "run", "rmoe", **change)
    code, stderr = interrupted(folder, corpus, after=0, ranks=ranks)
    assert code == 75, stderr
    assert_same_to_the_bit(trained(folder, corpus, ranks), whole)


@pytest.mark.slow
@pytest.mark.parametrize("router", ["topk", "rmoe-relu"])
def test_a_compiled_model_trains_to_the_same_numbers(router, undisturbed, corpus, tmp_path, monkeypatch):
    made = tmp_path / "compiled"
    monkeypatch.setitem(ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR", str(made))
    folder = trained(write_spec(tmp_path / "run", router, compile=True), corpus)
    assert list(made.rglob("*.so")), "nothing was compiled"
    for mine, other in zip(numbers(folder), numbers(undisturbed(router)), strict=True):
        assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)


def test_the_compiler_is_not_even_imported_where_nothing_is_compiled(corpus, tmp_path):
    folder = write_spec(tmp_path / "run", "topk")
    line = [sys.executable, "-X", "importtime", "-m", *command(folder, corpus)[4:]]  # without the launcher
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0 and {"deepspeed", "moe.training"} <= imported
    assert "torch._dynamo" not in imported and "torch._inductor" not in imported


def test_a_finished_run_opens_as_the_model_it_describes(undisturbed):
    model, spec = load_model(undisturbed("rmoe"), "all")
    assert not model.training and spec["run"] == "tiny"
    stored = weights(undisturbed("rmoe"))
    assert all((parameter == stored[name]).all() for name, parameter in model.named_parameters())


def test_metrics_have_a_row_a_step_and_names_that_are_identifiers(undisturbed):
    for router in ("relu", "none"):
        rows = numbers(undisturbed(router))
        assert [int(r["step"]) for r in rows] == list(range(1, SCHEDULE["steps"] + 1))
        assert all(name.isidentifier() for name in rows[0])
        assert [bool(r["valid_loss"]) for r in rows] == [(i + 1) % 6 == 0 for i in range(12)]
    assert all(not r["sparsity"] for r in rows) and all(not r["l1_lambda"] for r in rows)


def record_of(lambdas, router_losses, bounds=None):
    """Rows of a metrics.csv, as far as λ and its penalty go."""
    bounds = bounds or [0.0] * len(lambdas)
    rows = zip(lambdas, router_losses, bounds, strict=True)
    return [{"l1_lambda": str(a), "router_loss": str(b), "l1_bound": str(c), "loss": "2.0"} for a, b, c in rows]


def test_a_record_says_what_became_of_lambda():
    rows = record_of([1e-8, 1e-3, 1e-6, 1e-3, 1e-7, 1e-9], [1e-8, 1e-3, 1e-6, 2e-6, 1e-7, 1e-9], [0, 0, 1, 1, -1, 0])
    assert penalty_facts(rows) == {
        "l1_lambda_max": 1e-3,
        "l1_lambda_end": 1e-9,
        "l1_bound_steps": 3,
        "l1_upper_bound_steps": 2,
        "l1_faded_steps": 2,
    }
    short = penalty_facts(record_of([1e-8, 2e-8], [1e-8, 2e-8]))  # λ has not grown yet: nothing has faded
    assert short["l1_faded_steps"] == 0 and penalty_warnings(short | {"steps": 2}) == []
    assert penalty_facts([{"l1_lambda": "", "l1_bound": "", "router_loss": "0.1", "loss": "2.0"}]) == {}
    assert penalty_warnings({"steps": 800}) == []


def test_what_is_said_of_lambda_names_the_side_on_which_it_lies():
    facts = {"steps": 800, "l1_lambda_max": 0.16, "l1_lambda_end": 2.3e-17}
    lower, fading = penalty_warnings(facts | {"l1_bound_steps": 12, "l1_upper_bound_steps": 0, "l1_faded_steps": 81})
    assert "lower bound in 12 of 800 steps" in lower and "above its target" in lower
    assert "λ fell from 1.6e-01 to 2.3e-17: in the last 81 of 800 steps" in fading
    (upper,) = penalty_warnings(facts | {"l1_bound_steps": 5, "l1_upper_bound_steps": 5, "l1_faded_steps": 80})
    assert "upper bound in 5 of 800 steps" in upper and "denser than their target" in upper
    assert "sparser" not in upper


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lambda_0": 1e-4, "lambda_max": 1e-4}, "tiny seed 0  λ lay at its upper bound in "),
        ({"lambda_0": 100.0, "alpha": 1e3, "lambda_min": 1e-20}, "tiny seed 0  λ fell from 1.0e+0"),
    ],
)
def test_a_training_whose_lambda_does_not_hold_the_sparsity_says_so(options, says, corpus, tmp_path):
    folder = write_spec(tmp_path / "run", options=options)
    code, stderr = train(folder, corpus)
    done, rows = json.loads((folder / "done.json").read_text()), numbers(folder)
    assert code == 0 and says in stderr, (stderr, done)
    assert done["l1_bound_steps"] == sum(float(row["l1_bound"]) != 0 for row in rows)
    assert done["l1_upper_bound_steps"] == sum(float(row["l1_bound"]) > 0 for row in rows)
    assert done["l1_lambda_end"] == float(rows[-1]["l1_lambda"])


def damage_newest(folder, how):
    newest = sorted(checkpoint_folder(folder).glob("step-*"))[-1]
    victim = next((newest / "engine").glob("*model_states.pt"))
    content = victim.read_bytes()
    if how == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif how == "altered":
        victim.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif how == "missing":
        victim.unlink()
    else:
        (newest / "checkpoint.json").write_text("{")
    return newest.name


@pytest.mark.promise("A truncated, altered or missing file of a checkpoint: named, and the one before it used")
@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "unreadable record"])
def test_a_broken_checkpoint_is_named_and_the_one_before_it_used(how, undisturbed, corpus, tmp_path):
    folder = write_spec(tmp_path / "run", steps=12)
    trained(folder, corpus)
    name = damage_newest(folder, how)
    for file in ("done.json", "metrics.csv"):
        (folder / file).unlink()
    code, stderr = train(folder, corpus)
    assert code == 0 and f"{name}: " in stderr and "going back to the checkpoint before it" in stderr
    assert_same_to_the_bit(folder, undisturbed("relu"))


def test_only_the_newest_two_checkpoints_are_kept(undisturbed):
    kept = sorted(p.name for p in checkpoint_folder(undisturbed("relu")).glob("step-*"))
    assert kept == ["step-00000010", "step-00000012"]


@pytest.mark.parametrize("what", ["setup", "data", "precision"])
def test_a_foreign_checkpoint_is_refused_with_both_fingerprints(what, undisturbed, corpus, tmp_path):
    folder = write_spec(tmp_path / "run")
    trained(folder, corpus)
    newest = sorted(checkpoint_folder(folder).glob("step-*"))[-1]
    record = json.loads((newest / "checkpoint.json").read_text())
    here, record["belongs"][what] = record["belongs"][what], "feedfeedfeed"
    (newest / "checkpoint.json").write_text(json.dumps(record))
    code, stderr = train(folder, corpus)
    assert code == 2 and "feedfeedfeed" in stderr and here in stderr and "Traceback" not in stderr


@pytest.mark.promise("A corpus changed under a run: where it is cut, one sentence; where it is other text, begun anew")
def test_a_corpus_that_changes_under_a_run_is_noticed(corpus, tmp_path):
    changed, folder = tmp_path / "corpus", write_spec(tmp_path / "run")
    shutil.copytree(corpus, changed)
    code, stderr = interrupted(folder, changed, after=5)
    assert code in (0, 75), stderr
    tokens = changed / "train.tokens.bin"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-100])
    code, stderr = train(folder, changed)
    assert code == 2 and "Traceback" not in stderr and str(tokens) in stderr
    backwards = np.frombuffer(whole, Corpus(corpus).tokens("train").dtype)[::-1]
    tokens.write_bytes(backwards.tobytes())  # prepared anew from other text: another fingerprint
    manifest = changed / "manifest.json"
    manifest.write_text(manifest.read_text().replace(Corpus(changed).fingerprint, "feed" * 16))
    for left in ("done.json", "metrics.csv"):
        (folder / left).unlink(missing_ok=True)
    code, stderr = train(folder, changed)
    assert code == 0 and "from step 0" in stderr, stderr
    assert_same_to_the_bit(folder, trained(write_spec(tmp_path / "fresh"), changed))


@pytest.mark.promise("A number that is not finite at some step: step, layer and router named, the checkpoint kept")
def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(corpus, tmp_path):
    folder = write_spec(tmp_path / "run", learning_rate=1e30, final_learning_rate=1e30, checkpoint_every=1)
    code, stderr = train(folder, corpus)
    assert code == 2 and "Traceback" not in stderr
    assert "step 2: the gradient norm of router 'relu' is inf" in stderr
    assert checkpoints.broken(checkpoint_folder(folder) / "step-00000001") is None
    assert not (folder / "done.json").exists()


@pytest.mark.promise("A number that is not finite at some step: step, layer and router named, the checkpoint kept")
def test_a_loss_that_is_not_finite_names_step_layer_and_router():
    class Broken(torch.nn.Module):
        def forward(self, tokens_BS, routings):
            for value in (1.0, math.nan, math.nan):
                routings.append(SimpleNamespace(gates_TE=torch.full((2, 4), value)))

    health = Health(Broken(), "relu", "results/run")
    with pytest.raises(ValueError, match="step 7: the loss is nan.* router 'relu' are not finite from layer 1 on"):
        health.check_losses(7, math.nan, 0.0, torch.zeros(1, 2))
    health.check_losses(7, 1.0, 0.0, torch.zeros(1, 2))


@pytest.mark.promise("A layer whose experts stay all dead or all alive: step, layer and router named")
@pytest.mark.parametrize(("sparsity", "shown"), [(1.0, "100%"), (0.0, "0%")])
def test_a_layer_that_stays_empty_or_full_stops_the_run(sparsity, shown):
    model = SimpleNamespace(experts=4, top_k=1, router=SimpleNamespace(gates=SimpleNamespace(merges=False)))
    health = Health(model, "relu", "run", patience=3)
    row = {"step": 1, "gradient_norm": 1.0, "loss": 1.0, "sparsity_0": 0.7, "sparsity_1": sparsity}
    health.check(row)
    health.check(row | {"sparsity_1": 0.9})  # recovers: counted anew
    health.check(row)
    health.check(row)
    with pytest.raises(ValueError, match=f"step 9: layer 1 of router 'relu' has had a sparsity of {shown} for 3 steps"):
        health.check(row | {"step": 9})


@pytest.mark.promise("Two workflows, or two trainings, in one folder: the second is refused")
def test_two_processes_do_not_train_one_run(corpus, tmp_path):
    folder = write_spec(tmp_path / "run", steps=2000, checkpoint_every=1000)
    process = subprocess.Popen(command(folder, corpus), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_for(process, folder, "metrics.csv")
    code, stderr = train(folder, corpus)
    process.kill()
    process.wait()
    assert code == 2 and "another process is training this run" in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_jobs_process_group_still_writes_the_checkpoint(number, corpus, tmp_path):
    """As a scheduler sends it: to the shell of the rule and all below it, two ranks here."""
    folder = write_spec(tmp_path / "run", steps=4000, checkpoint_every=10_000)
    shell = "set -euo pipefail; export OMP_NUM_THREADS=1; exec " + " ".join(command(folder, corpus, ranks=2))
    process = subprocess.Popen(
        ["bash", "-c", f"{shell} --log {tmp_path}/log"], env=ENVIRONMENT, stderr=subprocess.PIPE, start_new_session=True
    )
    wait_for(process, folder, "metrics.csv")
    time.sleep(1)
    os.killpg(process.pid, number)
    process.communicate(timeout=90)
    assert process.returncode == 75
    (newest,) = checkpoint_folder(folder).glob("step-*")
    assert checkpoints.broken(newest) is None
    assert "tiny seed 0" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(batch=3, micro_batch=2), "batch 3 is not a multiple of 1 ranks × micro_batch 2"),
        (dict(expert_ranks=3), "4 experts cannot be spread evenly over 3 ranks"),
        (dict(expert_ranks=2), "1 ranks are not a multiple of the 2 that share experts"),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence(change, sentence, corpus, tmp_path):
    code, stderr = train(write_spec(tmp_path / "run", **change), corpus)
    assert code == 2 and sentence in stderr and "Traceback" not in stderr


def test_a_disk_too_small_for_the_checkpoints_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10**6}))
    with pytest.raises(ValueError, match="0.0 GiB free, the run's checkpoints need about 1.9 GiB"):
        checkpoints.check_disk(tmp_path, 2 * 10**9)
