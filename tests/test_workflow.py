"""The real workflow on tiny sizes (scale smoke), in the order of a user's day."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from moe.table_files import read_tsv

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "HF_"))}
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
BIN = str(Path(sys.executable).parent)
INACTIVE = ENVIRONMENT | {"PATH": os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != BIN)}
RUNS = [row["run"] for row in read_tsv(ROOT / "config/runs.tsv")]
TUNED = [row["run"] for row in read_tsv(ROOT / "config/finetunes.tsv")]
KILLS = 20  # of one workflow, at moments drawn from the seeds 0, 1, …
FIGURES = [(row["paper"], row["figure"]) for row in read_tsv(ROOT / "config/figures.tsv")]
CLAIMS = {(row["paper"], row["claim"]) for row in read_tsv(ROOT / "config/claims.tsv")}


def snakemake(folder, *arguments, ok=True, config=()):
    """Run the workflow in `folder`; what it printed."""
    command = [f"{BIN}/snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "2"]
    command += ["--workflow-profile", str(ROOT / "profiles/default"), *arguments, "--config", "scale=smoke", *config]
    done = subprocess.run(command, env=INACTIVE, capture_output=True, text=True, cwd=folder)
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, output[-6000:]
    return output


def fresh(folder):
    """A folder with the project's tables and nothing made."""
    shutil.copytree(ROOT / "config", folder / "config")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = fresh(tmp_path_factory.mktemp("workflow"))
    said = snakemake(folder)
    return folder, said


def jobs(output):
    """Rule -> number of jobs, of a dry run."""
    table = output.split("Job stats:")[1].split("Reasons:")[0] if "Job stats:" in output else ""
    found = re.findall(r"^(\w+) +(\d+)$", table, re.M)
    return {name: int(count) for name, count in found if name not in ("job", "total")}


def test_one_command_makes_every_table_figure_and_verdict(finished):
    folder, said = finished
    drawn = folder / "paper_figures/smoke"
    for paper, name in FIGURES:
        for ending in ("svg", "png", "csv") if name.startswith("fig") else ("csv", "md", "tex"):
            assert (drawn / paper / f"{name}.{ending}").stat().st_size > 50, (paper, name, ending)
    verdicts = (drawn / "claims.md").read_text()
    assert "at scale smoke (not the paper's size)" in verdicts
    assert all(f"{ {'remoe': 'ReMoE', 'rmoe': 'RMoE'}[paper] } claim {claim}" in verdicts for paper, claim in CLAIMS)
    assert re.search(r"holds|contradicted|inconclusive", verdicts)
    for run in [*RUNS, *TUNED]:
        assert re.search(rf"{run} seed 0  .* parameters", said), "the user sees which run is training"
    assert "paper_figures/smoke/claims.md" in said, "the user is told where to look"
    told = re.findall(r"^(?:Verdicts|Tables and figures): (.*)$", said, re.M)
    assert len(told) == 2 and all((folder / path).exists() for paths in told for path in paths.split(", "))


def test_every_run_leaves_its_record(finished):
    for run in [*RUNS, *TUNED]:
        folder = finished[0] / "results/smoke/runs" / run / "seed-0"
        for name in ("run.yaml", "metrics.csv", "done.json", "validation.csv"):
            assert (folder / name).exists(), (run, name)
        done = json.loads((folder / "done.json").read_text())
        manifest = json.loads((finished[0] / "results/corpora/smoke/manifest.json").read_text())
        assert done["data"] == manifest["fingerprint"]
        labels = {"10B", "20B", "30B", "40B", "80B", "100B", "120B", "200B", "280B", "400B", "best"}
        assert set(done["snapshots"]) <= labels
        assert any((folder / "tensorboard").iterdir())


def test_matched_runs_have_the_same_compute(finished):
    runs = finished[0] / "results/smoke/runs"
    matched = [(row["run"], row["matches"]) for row in read_tsv(ROOT / "config/runs.tsv") if row["matches"]]
    assert len(matched) > 10
    for run, other in matched:
        mine, theirs = (json.loads((runs / name / "seed-0/done.json").read_text())["flops"] for name in (run, other))
        steps = list(csv.DictReader((runs / run / "seed-0/metrics.csv").open()))
        assert mine == pytest.approx(sum(float(row["flops"]) for row in steps))
        # to half a step; a run that was sparser than top-k shortens nothing
        assert -0.51 < (mine - theirs) / float(steps[0]["flops"]) < 0.51 or mine > theirs and len(steps) == 24, run


def test_a_second_call_does_nothing(finished):
    assert "Nothing to be done" in snakemake(finished[0], "--dry-run")


def test_a_changed_row_reruns_its_own_run_and_what_shows_it(finished):
    folder, _ = finished
    table = folder / "config/runs.tsv"
    before = table.read_text()
    try:
        table.write_text(before.replace("segment: 256", "segment: 128"))  # Lory's
        planned = jobs(snakemake(folder, "--dry-run"))
    finally:
        table.write_text(before)
    assert planned["train"] == planned["freeze_run"] == planned["validate"] == planned["evaluate"] == 1
    assert "prepare_corpus" not in planned and planned["judge_claims"] == 1
    assert planned["draw_table"] == planned["draw_figure"] == 1  # table 2 and figure 5


def test_a_changed_caption_redraws_and_trains_nothing(finished):
    folder, _ = finished
    table = folder / "config/figures.tsv"
    before = table.read_text()
    try:
        table.write_text(before.replace("Every step of the training is drawn", "Every single step is drawn"))
        planned = jobs(snakemake(folder, "--dry-run"))
    finally:
        table.write_text(before)
    assert planned.pop("all") == 1 and planned == {"draw_figure": 1}


def test_the_report_holds_the_figures(finished):
    folder, _ = finished
    snakemake(folder, "--report", "report.html")
    assert (folder / "report.html").stat().st_size > 100_000


def test_published_results_redraw_the_same_verdicts(finished):
    folder, _ = finished
    snakemake(folder, "publish")
    verdicts = folder / "paper_figures/smoke/claims.csv"
    before = [row["verdict"] for row in csv.DictReader(verdicts.open())]
    published = folder / "paper_figures/published/smoke"
    assert "device:" in (published / "provenance.yaml").read_text()
    assert (published / "runs" / RUNS[0] / "seed-0/run.yaml").exists()
    snakemake(folder, "figures", config=["results=published"])
    assert [row["verdict"] for row in csv.DictReader(verdicts.open())] == before
    shutil.rmtree(published / "runs/remoe-182m-lory")  # as if its row were younger than what was published
    said = snakemake(folder, "figures", "--dry-run", config=["results=published"])
    left = re.search("Not published at scale smoke, so left out: (.*)\\.", said)[1].split(", ")
    assert left == ["remoe/table2", "remoe/fig5", "remoe claim 3"] and jobs(said)["redraw"] == 1


@pytest.mark.slow
@pytest.mark.promise("SIGKILL of a whole workflow at random moments: the same command goes on, the files are the same")
def test_a_killed_workflow_goes_on_with_the_same_command(finished, tmp_path, record_property):
    folder = fresh(tmp_path)
    shutil.copytree(finished[0] / "results/corpora", folder / "results/corpora")
    runs = [run for run in RUNS if run.startswith("remoe-182m-")]
    made = [f"results/smoke/runs/{run}/seed-0/validation.csv" for run in runs]
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "2"]
    command += ["--workflow-profile", str(ROOT / "profiles/default"), *made, "--config", "scale=smoke"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed, progress = 0, set()
    for seed in range(KILLS):
        process = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, cwd=folder, **quiet)
        log = wait_for_a_job(folder, process)
        time.sleep(random.Random(seed).uniform(0, 3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        progress.add(sum((folder / path).exists() for path in made))
        assert log is None or log.exists()
    record_property("kills", killed)
    assert killed >= KILLS // 2 and len(progress) > 3, "the kills were to come in the middle"
    snakemake(folder, *made)  # the same command, and no other
    for run in runs:
        mine, other = (base / "results/smoke/runs" / run / "seed-0" for base in (folder, finished[0]))
        assert (mine / "validation.csv").read_text() == (other / "validation.csv").read_text()
        mine, other = (json.loads((base / "done.json").read_text())["snapshots"] for base in (mine, other))
        assert [s["sha256"] for s in mine.values()] == [s["sha256"] for s in other.values()], run


def test_ended_jobs_leave_nothing_that_asks_for_more(tmp_path):
    """Snakemake's pace for schedulers leaves a thread for each job that has ended, awake once a second."""
    folder = fresh(tmp_path)
    runs = [row["run"] for row in read_tsv(folder / "config/runs.tsv") if not row["matches"]][:40]
    targets = [f"results/smoke/runs/{run}/seed-0/run.yaml" for run in runs]
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *targets, "--config", "scale=smoke"]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command, env=ENVIRONMENT, cwd=folder, stdout=said, stderr=said)
    threads = [0]
    while process.poll() is None:
        with suppress(OSError):  # it has ended meanwhile
            threads.append(len(os.listdir(f"/proc/{process.pid}/task")))
        time.sleep(0.02)
    assert process.returncode == 0 and all((folder / target).exists() for target in targets)
    assert 1 <= max(threads) < 20, "for 40 jobs, two at a time"


def wait_for_a_job(folder, process):
    """Until the newest workflow in a folder has begun a job; its log, None where it ended before."""
    limit, started = time.time() + 120, time.time()
    while time.time() < limit and process.poll() is None:
        for log in folder.glob(".snakemake/log/*.log"):
            if log.stat().st_mtime > started and "jobid:" in log.read_text():
                return log
        time.sleep(0.05)
    return None


def test_a_fine_tuned_run_is_made_from_nothing_and_again_where_its_base_is(tmp_path):
    folder, run = fresh(tmp_path), "rmoe-900m-smoe-20b-sft-frozen-gate"
    made = f"results/smoke/runs/{run}/seed-0"
    wanted = [f"{made}/validation.csv", f"{made}/scores.csv"]
    snakemake(folder, *wanted)
    done = json.loads((folder / made / "done.json").read_text())
    assert done["base"]["run"] == "rmoe-900m-smoe" and list(done["snapshots"]) == ["20B"]
    scores = list(csv.DictReader((folder / made / "scores.csv").open()))
    assert {row["task"] for row in scores} == {"local_last_word", "local_best_ending", "local_cloze"}
    assert {row["snapshot"] for row in scores} == {"20B"}
    assert "Nothing to be done" in snakemake(folder, *wanted, "--dry-run")
    table = folder / "config/scales/smoke.yaml"
    table.write_text(table.read_text().replace("learning_rate: 2.4e-4", "learning_rate: 1.2e-4"))
    planned = jobs(snakemake(folder, *wanted, "--dry-run"))
    assert planned["finetune"] == planned["freeze_run"] == 1 and "train" not in planned


@pytest.mark.promise("Two workflows, or two trainings, in one folder: the second is refused")
def test_a_second_workflow_in_one_folder_is_refused(tmp_path):
    folder = fresh(tmp_path)
    (folder / ".snakemake").mkdir()
    with FileLock(folder / ".snakemake/running.lock"):
        said = snakemake(folder, ok=False)
    assert "error: another workflow is running in" in said and "Traceback" not in said
    assert not (folder / "results/corpora").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("runs.tsv", "\ttopk\t", "\ttopkk\t", "column router: 'topkk' is unknown; the nearest valid name is 'topk'"),
        ("figures.tsv", "\tsparsity\t", "\tsparsty\t", "the nearest valid name is 'sparsity'"),
        ("figures.tsv", "run == 'remoe-182m-relu'", "run == 'remoe-182m-rel'", "selects no run"),
        ("claims.tsv", "\tvalid_loss\t", "\tvalid_los\t", "the nearest valid name is 'valid_loss'"),
    ],
)
def test_a_wrong_table_ends_the_workflow_with_one_sentence(file, old, new, says, tmp_path):
    folder = fresh(tmp_path)
    path = folder / "config" / file
    path.write_text(path.read_text().replace(old, new, 1))
    said = snakemake(folder, ok=False)
    error = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and says in error[0] and file in error[0]
    assert "Traceback" not in said and not (folder / "results").exists()


def git(*arguments):
    """What git says of this checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with the files that git knows, as they are here, and no others."""
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("no git checkout")
    folder = tmp_path_factory.mktemp("clone")
    for name in git("ls-files", "-z").stdout.split("\0")[:-1]:
        if (ROOT / name).is_file():  # one that is deleted and not yet committed is in the list
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_fresh_clone_has_everything_to_do(clone):
    command = ["snakemake", "--cores", "2", "--dry-run"]  # as the README has it: its own Snakefile, profile and scale
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=clone)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    planned = jobs(done.stdout + done.stderr)
    assert planned["train"] == len(RUNS) and planned["finetune"] == len(TUNED)
    assert planned["freeze_run"] == len(RUNS) + len(TUNED) and planned["prepare_instructions"] == 1
    assert planned["draw_figure"] + planned["draw_table"] == len(FIGURES)
    assert "measure_precision" not in planned


def test_git_ignores_what_the_workflow_makes_and_keeps_what_is_published(clone):
    made = ["results/laptop/x", "paper_figures/laptop/x", ".snakemake/x"]
    kept = ["paper_figures/published/laptop/x", "results/README.md"]
    assert git("check-ignore", "--no-index", *made, *kept).stdout.split() == made


def test_a_precision_that_is_left_to_the_machine_is_measured_on_it(tmp_path):
    scale = fresh(tmp_path) / "config/scales/smoke.yaml"
    scale.write_text(re.sub(r"\n *precision: float32[^\n]*", "", scale.read_text()))
    run = "results/smoke/runs/remoe-182m-topk/seed-0/done.json"
    snakemake(tmp_path, run)
    measured = json.loads((tmp_path / "results/smoke/precision.json").read_text())
    seconds = measured["seconds"]
    assert set(seconds) == {"float32", "bfloat16"} and measured["precision"] == min(seconds, key=seconds.get)
    assert json.loads((tmp_path / run).read_text())["precision"] == measured["precision"]
