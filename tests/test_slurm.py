"""Trainings and a workflow on a real Slurm of this machine (tests/slurm/cluster.sh): stopped, and the same numbers."""

import csv
import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from test_training import (
    ENVIRONMENT,
    assert_same_to_rounding,
    assert_same_to_the_bit,
    command,
    corpus,  # noqa: F401 (a fixture)
    trained,
    write_spec,
)

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
def test_a_job_at_its_wall_time_goes_on_however_often(cluster, corpus, whole, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", **LONG)
    # a minute is the shortest limit: warned 50 to 55 seconds before its end, the job has a few seconds a turn
    job = cluster.submit(command(folder, corpus), "--time=1", REROUTED_WARNING="53")
    assert cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", seconds=300) == "COMPLETED"
    assert int(cluster.shown(job, "Restarts")) >= 1, "it was to be stopped at least once"
    assert_same_to_the_bit(whole, folder)


@pytest.mark.promise("A cancelled job of Slurm, submitted again: the same numbers")
def test_a_cancelled_job_goes_on_where_it_is_submitted_again(cluster, corpus, whole, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", **LONG)
    job = cluster.submit(command(folder, corpus))
    cluster.wait_for_file(job, folder, "checkpoints/*/step-*")
    cluster.ask("scancel", job)
    cluster.wait(job, "CANCELLED")
    assert not (folder / "done.json").exists()
    job = cluster.submit(command(folder, corpus))
    cluster.wait(job, "COMPLETED")
    assert "from step 0" not in cluster.printed(job)
    assert_same_to_the_bit(whole, folder)


@pytest.mark.promise("A preempted or requeued job of Slurm: the same numbers")
@pytest.mark.parametrize("how", ["requeue", "preemption"])
def test_a_job_that_gives_way_goes_on_by_itself(how, cluster, corpus, whole, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", **LONG)
    job = cluster.submit(command(folder, corpus))
    cluster.wait_for_file(job, folder, "checkpoints/*/step-*")
    if how == "requeue":
        cluster.ask("scontrol", "requeue", job)
    else:
        cluster.submit(["sleep", "1"], "--partition=urgent", "--exclusive", f"--nodes={NODES}")
    cluster.wait(job, "COMPLETED")
    assert cluster.shown(job, "Restarts") == "1"
    assert_same_to_the_bit(whole, folder)


@pytest.mark.promise("The workflow on a real Slurm")
def test_the_workflow_runs_on_the_cluster(cluster, tmp_path):
    """From the login node to tables: three trainings, their validations, a figure, a table, each job by Slurm."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    targets = ["paper_figures/smoke/remoe/fig3.svg", "paper_figures/smoke/remoe/table6.md"]
    words = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path), *targets]
    words += ["--profile", str(ROOT / "profiles/slurm"), "--workflow-profile", "none"]
    # this cluster has no accounting, and answers at once
    words += [
        "--slurm-status-command",
        "squeue",
        "--slurm-init-seconds-before-status-checks",
        "5",
        "--latency-wait",
        "10",
    ]
    words += ["--config", "scale=smoke", "gpus=0", "cluster={cpus: 2, max_minutes: 10, mem_mb: 1000}"]
    done = subprocess.run(words, env=cluster.environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    with (tmp_path / "results/smoke/runs/remoe-182m-relu/seed-0/metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 24
    assert all((tmp_path / target).stat().st_size > 100 for target in targets)
    jobs = (cluster.base / "log/jobs.txt").read_text()
    assert jobs.count("JobState=COMPLETED") >= 6, "corpus, trainings and validations are jobs of it"
