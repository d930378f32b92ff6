"""Jobs that a warm process forks are as fresh ones: results, exit codes, signals, and what a kill leaves behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_training import ENVIRONMENT, ROOT, assert_same_to_the_bit, trained, wait_for, write_spec
from tiny_run import write_corpus, write_run

from moe.data import Corpus
from moe.launch import READ_ONCE, WARM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and process descriptors of Linux")
START = "from moe.warm import start; print(start('warm.socket').pid, flush=True); input()"
ONE_THREAD = {name: "1" for name in READ_ONCE if name.endswith("_THREADS")}
LONG = dict(steps=100_000, checkpoint_every=50_000)


class Warm:
    """A warm process, the process that owns it, and the commands that it is asked to run."""

    def __init__(self, folder, package=ROOT / "workflow"):
        self.folder, self.environment = folder, ENVIRONMENT | ONE_THREAD | {"PYTHONPATH": str(package)}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.owner = subprocess.Popen([sys.executable, "-c", START], cwd=folder, env=self.environment, **pipes)
        self.process = int(self.owner.stdout.readline())

    def command(self, module, *arguments, **environment):
        """Start a command by moe.launch; its environment differs by what is given."""
        environment = self.environment | {WARM: str(self.folder / "warm.socket")} | environment
        command = [sys.executable, "-m", "moe.launch", "1", module, *map(str, arguments)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, env=environment, cwd=environment.pop("PWD", self.folder), **pipes)

    def run(self, *command, **environment):
        """Run a command to its end: exit code, what it printed."""
        process = self.command(*command, **environment)
        said = "".join(process.communicate(timeout=120))
        return process.returncode, said

    def log(self):
        return (self.folder / "warm.socket.log").read_text()

    def jobs(self):
        """The processes that were forked, in their order."""
        return [int(found) for found in re.findall(r"process (\d+)", self.log())]

    def close(self):
        self.owner.kill()
        self.owner.communicate()


def alive(process):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False


def ends(process, seconds=90):
    """Whether a process ends in time; files that a killed one closes may have to reach a busy disk first."""
    limit = time.time() + seconds
    while alive(process) and time.time() < limit:
        time.sleep(0.02)
    return not alive(process)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """One for the tests that leave it alive."""
    made = Warm(tmp_path_factory.mktemp("warm"))
    yield made
    made.close()


@pytest.fixture
def own(tmp_path):
    """One for a test that kills it."""
    made = Warm(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "corpus"
    write_corpus(folder)
    return folder


def training(folder, corpus, **schedule):
    """What moe.launch is given for a training of a new run."""
    return "moe.train", write_spec(folder, **schedule) / "run.yaml", "--corpus", corpus


def test_a_training_and_all_that_it_is_asked_are_the_same_to_the_bit(warm, corpus, tmp_path):
    fresh = trained(write_spec(tmp_path / "fresh"), corpus)
    before = len(warm.jobs())
    assert warm.run(*training(tmp_path / "warm", corpus))[0] == 0
    assert_same_to_the_bit(tmp_path / "warm", fresh)
    write_run(tmp_path / "run", Corpus(corpus))
    for kind, environment in (("fresh", {WARM: ""}), ("warm", {})):
        (tmp_path / kind / "asked").mkdir()
        place, files = tmp_path / kind / "asked", (tmp_path / "run", corpus)
        windows = ("--windows-output", place / "windows.csv")
        done = [
            warm.run("moe.validate", *files, "--output", place / "validation.csv", *windows, **environment),
            warm.run("moe.evaluate", *files, "--output", place / "scores.csv", **environment),
            warm.run("moe.probe", *files, "--output", place, **environment),
            warm.run("moe.freeze", '{"run": "name"}', place / "run.yaml", **environment),
        ]
        assert [code for code, _ in done] == [0] * 4, done
    assert len(warm.jobs()) == before + 5, warm.log()
    names = {path.name for path in (tmp_path / "warm/asked").iterdir()}
    assert names >= {"validation.csv", "windows.csv", "scores.csv", "routing.csv", "run.yaml"}
    for name in names:
        assert (tmp_path / "warm/asked" / name).read_bytes() == (tmp_path / "fresh/asked" / name).read_bytes(), name


def test_folder_environment_and_streams_are_the_clients(warm, tmp_path):
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho commit-of-$ASKED\n")
    git.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": "mine", "PWD": str(tmp_path)}
    before = len(warm.jobs())
    assert warm.run("moe.freeze", '{"run": "näme"}', "run.yaml", **path) == (0, "")
    frozen = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert (frozen["run"], frozen["commit"]) == ("näme", "commit-of-mine")
    code, said = warm.run("moe.freeze", "{}", "missing/run.yaml", **path)
    assert code == 2 and said.startswith("error: ") and "missing/run.yaml" in said
    code, said = warm.run("moe.freeze", "{}")
    assert code == 2 and "usage: freeze.py" in said
    assert len(warm.jobs()) == before + 3


@pytest.mark.parametrize(
    ("number", "ends_as"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, -signal.SIGINT)]
)
def test_signals_reach_the_job_and_its_end_is_the_clients(number, ends_as, warm, corpus, tmp_path):
    process = warm.command(*training(tmp_path / "run", corpus, **LONG))
    wait_for(process, tmp_path / "run", "metrics.csv")
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == ends_as, said
    assert len(list(tmp_path.glob("run/checkpoints/*/step-*"))) == (ends_as == 75)


def test_a_killed_job_is_a_killed_client_and_the_reverse(warm, corpus, tmp_path):
    process = warm.command(*training(tmp_path / "job", corpus, **LONG))
    wait_for(process, tmp_path / "job", "metrics.csv")
    os.kill(warm.jobs()[-1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    process = warm.command(*training(tmp_path / "client", corpus, **LONG))
    wait_for(process, tmp_path / "client", "metrics.csv")
    assert alive(warm.jobs()[-1])
    process.kill()
    process.communicate(timeout=60)
    assert ends(warm.jobs()[-1]) and alive(warm.process)


def test_two_jobs_run_at_once(warm, corpus, tmp_path):
    processes = [warm.command(*training(tmp_path / name, corpus, **LONG)) for name in "ab"]
    for process, name in zip(processes, "ab", strict=True):
        wait_for(process, tmp_path / name, "metrics.csv")
    first, second = warm.jobs()[-2:]
    assert alive(first) and alive(second) and all(process.poll() is None for process in processes)
    processes[0].send_signal(signal.SIGTERM)
    processes[0].communicate(timeout=60)
    assert processes[0].returncode == 75 and processes[1].poll() is None
    processes[1].send_signal(signal.SIGTERM)
    processes[1].communicate(timeout=60)
    assert processes[1].returncode == 75


def test_a_job_goes_on_alone_when_the_warm_process_is_killed(own, corpus, tmp_path):
    schedule = dict(steps=400, checkpoint_every=20)
    process = own.command(*training(tmp_path / "run", corpus, **schedule))
    wait_for(process, tmp_path / "run", "step-*")
    (job,) = own.jobs()
    os.kill(own.process, signal.SIGKILL)
    assert ends(job) and not (tmp_path / "run/done.json").exists()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and len(re.findall("from step [1-9]", said)) == 1, said
    assert_same_to_the_bit(tmp_path / "run", trained(write_spec(tmp_path / "fresh", **schedule), corpus))
    code, said = own.run("moe.freeze", "{}", tmp_path / "run.yaml")  # nobody listens any more
    assert code == 0, said
    assert own.jobs() == [job]


def test_it_ends_with_its_owner_and_so_do_its_jobs(own, corpus, tmp_path):
    process = own.command(*training(tmp_path / "run", corpus, **LONG))
    wait_for(process, tmp_path / "run", "metrics.csv")
    (job,) = own.jobs()
    os.kill(own.process, signal.SIGTERM)  # as a scheduler sends it to all: it is for the jobs
    assert not ends(own.process, seconds=0.3) and alive(job)
    own.owner.kill()
    assert ends(own.process) and ends(job)
    process.kill()
    process.communicate()


def test_what_would_differ_from_a_fresh_process_is_declined(tmp_path):
    package = tmp_path / "workflow"
    shutil.copytree(ROOT / "workflow/moe", package / "moe", ignore=shutil.ignore_patterns("__pycache__"))
    warm = Warm(tmp_path, package)
    try:
        freeze = ("moe.freeze", "{}", tmp_path / "run.yaml")
        assert warm.run("json.tool", "--help")[0] == 0
        assert "declined: json.tool is none of moe.train" in warm.log()
        assert warm.run(*freeze, OMP_NUM_THREADS="2")[0] == 0
        assert "declined: OMP_NUM_THREADS is 2, not 1" in warm.log()
        assert warm.run(*freeze, SLURM_JOB_ID="7")[0] == 0
        assert "declined: SLURM_JOB_ID is 7, not None" in warm.log()
        assert warm.run(*freeze, PYTHONPATH=str(ROOT / "workflow"))[0] == 0
        assert f"declined: PYTHONPATH is {ROOT}" in warm.log() and not warm.jobs()
        assert warm.run(*freeze)[0] == 0 and len(warm.jobs()) == 1
        (package / "moe/matching.py").touch()
        assert warm.run(*freeze)[0] == 0
        assert "declined: the package has been edited" in warm.log() and len(warm.jobs()) == 1
    finally:
        warm.close()
