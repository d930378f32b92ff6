"""Trainings and a workflow on a real Slurm of this machine (tests/slurm/cluster.sh): stopped, and the same numbers."""

import getpass
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from test_training import (
    ENVIRONMENT,
    assert_same_to_rounding,
    assert_same_to_the_bit,
    command,
    corpus,  # noqa: F401 (a fixture)
    numbers,
    trained,
    write_spec,
)

from moe.table_files import read_tsv

ROOT = Path(__file__).parent.parent
NODES = 2
LONG = dict(steps=1500, validate_every=500, checkpoint_every=300)  # long enough to be stopped in the middle
DAEMONS = ("munged", "slurmctld", "slurmd")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, DAEMONS)), reason="Debian's packages munge and slurm-wlm are not there"
    ),
]


class Cluster:
    """A running Slurm: what a user would type."""

    def __init__(self, base: Path):
        self.base = base
        places = [str(base / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = ENVIRONMENT | {"SLURM_CONF": str(base / "slurm.conf"), "PATH": os.pathsep.join(places)}

    def ask(self, *words: str) -> str:
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def submit(self, words: list[str], *options: str, **variables: str) -> str:
        """A job that runs the command; its number."""
        given = [f"--export={','.join(['ALL', *(f'{k}={v}' for k, v in variables.items())])}", *options]
        line = f"exec {shlex.join(words)}"
        return self.ask("sbatch", "--parsable", f"--output={self.base}/log/%j.txt", "--requeue", *given, "--wrap", line)

    def shown(self, job: str, key: str) -> str:
        return re.search(rf"\b{key}=(\S+)", self.ask("scontrol", "--oneliner", "show", "job", job))[1]

    def wait(self, job: str, *states: str, seconds: float = 150) -> str:
        """Until the job is in one of these states."""
        limit = time.time() + seconds
        while (state := self.shown(job, "JobState")) not in states:
            assert time.time() < limit, f"job {job} is {state}, expected {states}: {self.printed(job)}"
            time.sleep(0.1)
        return state

    def workflow(self, folder: Path, *words: str, seconds: int, **config: str) -> None:
        """Run snakemake in `folder`, all its jobs by this cluster: it has no accounting, and answers at once."""
        if not (folder / "config").exists():
            shutil.copytree(ROOT / "config", folder / "config")
        line = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), *words]
        line += ["--profile", str(ROOT / "profiles/slurm"), "--workflow-profile", "none", "--latency-wait", "10"]
        line += ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5"]
        line += ["--config", "scale=smoke", "gpus=0", *(f"{key}={value}" for key, value in config.items())]
        pipes = dict(capture_output=True, text=True, timeout=seconds)
        done = subprocess.run(line, env=self.environment, cwd=folder, **pipes)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]

    def completed(self) -> list[dict[str, str]]:
        """What Slurm noted of each job that has completed."""
        lines = (self.base / "log/jobs.txt").read_text().splitlines()
        noted = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
        return [job for job in noted if job["JobState"] == "COMPLETED"]

    def stop_node(self, node: str, job: str | None = None) -> None:
        """Kill a node's daemon and, as if the power had gone, all that it runs of a job."""
        os.kill(int((self.base / f"run/slurmd.{node}.pid").read_text()), signal.SIGKILL)
        for number in running() if job else ():
            with suppress(OSError):
                if f"[{job}." in Path(f"/proc/{number}/cmdline").read_text():  # its slurmstepd
                    for one in [number, *descendants(number)]:
                        os.kill(one, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        self.ask("/usr/sbin/slurmd", "-f", str(self.base / "slurm.conf"), "-N", node)

    def printed(self, job: str) -> str:
        path = self.base / "log" / f"{job}.txt"
        return path.read_text()[-3000:] if path.exists() else ""

    def wait_for_file(self, job: str, folder: Path, pattern: str) -> None:
        limit = time.time() + 60
        while not list(folder.glob(pattern)):
            assert time.time() < limit, f"job {job} wrote no {pattern}: {self.printed(job)}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster():
    base = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))  # a socket's path has 107 bytes at most
    base.chmod(0o755)  # munge wants it so
    script = str(ROOT / "tests/slurm/cluster.sh")
    try:
        subprocess.run([script, "up", str(base), str(NODES)], check=True)
        yield Cluster(base)
    finally:
        numbers = [path.read_text().strip() for path in base.glob("run/*.pid")]
        subprocess.run([script, "down", str(base)], check=True)
    left = [n for n in numbers if n and Path(f"/proc/{n}/comm").exists() and "Z" not in state_of(n)]
    assert not left, f"daemons of {getpass.getuser()} are still there: {left}"
    shutil.rmtree(base)


def running() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def descendants(number: int) -> list[int]:
    """Processes that a process has started, and those that these have."""
    children = [int(n) for p in Path(f"/proc/{number}/task").glob("*/children") for n in p.read_text().split()]
    return children + [deeper for child in children for deeper in descendants(child)]


def state_of(number: str) -> str:
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):  # noqa: F811
    """A long training that nobody stopped."""
    return trained(write_spec(tmp_path_factory.mktemp("whole"), **LONG), corpus)


@pytest.mark.promise("Ranks on two nodes: the same numbers to rounding")
def test_ranks_of_two_nodes_find_each_other(cluster, corpus, tmp_path):  # noqa: F811
    one = trained(write_spec(tmp_path / "one"), corpus)
    two = write_spec(tmp_path / "two")
    job = cluster.submit(["srun", *command(two, corpus, ranks=2)], "--nodes=2", "--ntasks=2", "--ntasks-per-node=1")
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", cluster.printed(job)
    assert cluster.shown(job, "NumNodes") == "2" and "on 2 ×" in cluster.printed(job)
    assert_same_to_rounding(one, two)


@pytest.mark.promise("A job of Slurm at its wall time: warned, queued again, the same numbers")
def test_a_job_at_its_wall_time_goes_on_however_often(cluster, corpus, request, tmp_path):  # noqa: F811
    """One that is alone, and one forked by a warm process as in a group of jobs, side by side."""
    start = f"import os, subprocess, sys; from moe.warm import start; os.chdir({str(tmp_path)!r}); start('w.socket')"
    warm = [sys.executable, "-c", f"{start}; sys.exit(subprocess.run(sys.argv[1:]).returncode)"]
    # a minute is the shortest limit: warned 50 to 55 seconds before its end, the job has a few seconds a turn
    said = {"REROUTED_WARNING": "53", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    folders = {how: write_spec(tmp_path / how, **LONG) for how in ("alone", "forked")}
    lines = {"alone": command(folders["alone"], corpus), "forked": [*warm, *command(folders["forked"], corpus)]}
    jobs = {how: cluster.submit(line, "--time=1", **said) for how, line in lines.items()}
    whole = request.getfixturevalue("whole")  # trained while the jobs wait for their turns
    for how, job in jobs.items():
        assert cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", seconds=300) == "COMPLETED", how
        assert int(cluster.shown(job, "Restarts")) >= 1, f"{how}: it was to be stopped at least once"
        assert_same_to_the_bit(whole, folders[how])
    assert "moe.train: process" in (tmp_path / "w.socket.log").read_text(), "the warm process was asked"


@pytest.fixture(scope="module")
def stopped(cluster, corpus, whole, tmp_path_factory):  # noqa: F811
    """Two jobs side by side, stopped after their first checkpoints: numbers and folders."""
    folders = {how: write_spec(tmp_path_factory.mktemp(how), **LONG) for how in ("cancelled", "requeued")}
    jobs = {how: cluster.submit(command(folder, corpus)) for how, folder in folders.items()}
    for (how, job), words in zip(jobs.items(), (["scancel"], ["scontrol", "requeue"]), strict=True):
        cluster.wait_for_file(job, folders[how], "checkpoints/*/step-*")
        cluster.ask(*words, job)
    return {how: (job, folders[how]) for how, job in jobs.items()}


@pytest.mark.promise("A cancelled job of Slurm, submitted again: the same numbers")
def test_a_cancelled_job_goes_on_where_it_is_submitted_again(cluster, stopped, corpus, whole):  # noqa: F811
    job, folder = stopped["cancelled"]
    cluster.wait(job, "CANCELLED")
    assert not (folder / "done.json").exists()
    job = cluster.submit(command(folder, corpus))
    cluster.wait(job, "COMPLETED")
    assert "from step 0" not in cluster.printed(job)
    assert_same_to_the_bit(whole, folder)


@pytest.mark.promise("A preempted or requeued job of Slurm: the same numbers")
def test_a_requeued_job_goes_on_by_itself(cluster, stopped, whole):
    job, folder = stopped["requeued"]
    cluster.wait(job, "COMPLETED")
    assert cluster.shown(job, "Restarts") == "1"
    assert_same_to_the_bit(whole, folder)


@pytest.mark.promise("A preempted or requeued job of Slurm: the same numbers")
def test_a_preempted_job_goes_on_by_itself(cluster, corpus, whole, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", **LONG)
    job = cluster.submit(command(folder, corpus))
    cluster.wait_for_file(job, folder, "checkpoints/*/step-*")
    cluster.submit(["sleep", "1"], "--partition=urgent", "--exclusive", f"--nodes={NODES}")
    cluster.wait(job, "COMPLETED")
    assert cluster.shown(job, "Restarts") == "1"
    assert_same_to_the_bit(whole, folder)


@pytest.mark.promise("A node of Slurm that dies, or whose daemon does: the same numbers")
def test_a_job_outlives_its_node(cluster, corpus, whole, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", **LONG)
    job = cluster.submit(command(folder, corpus))
    cluster.wait_for_file(job, folder, "checkpoints/*/step-*")
    node = cluster.shown(job, "NodeList")
    cluster.stop_node(node, job)
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")
    try:
        cluster.wait(job, "COMPLETED")
        assert cluster.shown(job, "Restarts") == "1" and cluster.shown(job, "NodeList") != node
    finally:
        cluster.start_node(node)  # which takes it up again
    assert_same_to_the_bit(whole, folder)


@pytest.mark.promise("A node of Slurm that dies, or whose daemon does: the same numbers")
def test_a_job_outlives_the_daemon_of_its_node(cluster, corpus, whole, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", **LONG)
    job = cluster.submit(command(folder, corpus))
    cluster.wait_for_file(job, folder, "checkpoints/*/step-*")
    node = cluster.shown(job, "NodeList")
    cluster.stop_node(node)
    cluster.start_node(node)
    cluster.wait(job, "COMPLETED")
    assert cluster.shown(job, "Restarts") == "0"
    assert_same_to_the_bit(whole, folder)


@pytest.mark.promise("The workflow on a real Slurm")
def test_the_whole_workflow_runs_on_the_cluster(cluster, tmp_path):
    """From the login node to all tables and figures of both papers, each job by Slurm and as the config asks for it.

    The jobs of 40 runs are one of Slurm's, since each takes a second or two; what validates domains is left alone.
    """
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    before = len(cluster.completed())
    # meanwhile some of the runs on this machine alone: a router each, one that matches another's compute, a fine-tuned
    shutil.copytree(ROOT / "config", here / "config")
    names = ("remoe-182m-relu", "remoe-182m-topk-matched", "rmoe-enwik8-medium-rmoe", "rmoe-900m-rmoe-p128-20b-sft")
    runs = [Path(f"results/smoke/runs/{name}/seed-0") for name in names]
    same = [str(run / "validation.csv") for run in runs]
    line = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(here), "--cores", "2", *same]
    prepared = ("prepare_corpus", "make_local_tasks", "prepare_instructions")
    grouped = ("freeze_run", "train", "finetune", "validate", "evaluate", "probe")
    words = ["--groups", *(f"{rule}=data" for rule in prepared), *(f"{rule}=runs" for rule in grouped)]
    words += ["--group-components", "runs=40", "--cores", "2"]
    rules = "{validate_domains: {partition: short, minutes: 7}, measure_costs: {cpus: 3}}"
    asked = f"{{cpus: 2, max_minutes: 10, mem_mb: 1000, rules: {rules}}}"
    with subprocess.Popen([*line, "--config", "scale=smoke"], env=cluster.environment, cwd=here) as alone:
        cluster.workflow(there, "all", *words, seconds=1500, cluster=asked)
    figures = [(row["paper"], row["figure"]) for row in read_tsv(ROOT / "config/figures.tsv")]
    jobs = cluster.completed()[before:]
    assert len(figures) > 50 and len(jobs) >= 8
    for paper, figure in figures:
        assert (there / f"paper_figures/smoke/{paper}/{figure}.csv").stat().st_size > 50, (paper, figure)
    short = [job for job in jobs if job["Partition"] == "short"]
    assert len(short) == 6 and {job["TimeLimit"] for job in short} == {"7"}, "domains, as the config says"
    assert "3" in {job["ProcCnt"] for job in jobs}, "of measure_costs"
    limits = [job["TimeLimit"] for job in jobs if job not in short]
    summed = [limit for limit in limits if int(limit) > 10]  # a group asks for the sum of its jobs' minutes
    assert {"10"} == set(limits) - set(summed) and len(summed) <= 6, "as the config says, others no more than allowed"
    assert alone.returncode == 0
    for run in runs:
        one, other = ((place / run / "validation.csv").read_text() for place in (here, there))
        assert one == other and one.count("\n") > 1, run
        assert numbers(here / run) == numbers(there / run), run
    assert len(numbers(there / runs[0])) == 24
