"""GPUs of one machine, pretended by name: each job has its own, none is taken twice, and a dead job's comes back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEVICES = ["3", "GPU-b", "7"]
# a job that notes which devices it has, and when, and stays for a while
JOB = """
import os, sys, time
folder, seconds = sys.argv[1:]
name = os.environ["CUDA_VISIBLE_DEVICES"], os.environ["LOCAL_RANK"], os.getpid()
begun = time.monotonic()
open(f"{folder}/begun-{name[2]}", "w").write(name[0])
time.sleep(float(seconds))
open(f"{folder}/job-{name[2]}", "w").write(f"{name[0]}|{name[1]}|{begun}|{time.monotonic()}")
"""


@pytest.fixture
def machine(tmp_path):
    """(a module's folder, environment of a machine with three devices and locks of its own)"""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "locks").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK", "LOCAL_RANK", "WORLD_SIZE"))}
    places = f"{ROOT / 'workflow'}{os.pathsep}{tmp_path}"
    return tmp_path, kept | {
        "PYTHONPATH": places,
        "REROUTED_DEVICES": ",".join(DEVICES),
        "TMPDIR": str(tmp_path / "locks"),
    }


def start(machine, ranks=1, seconds=0.5):
    folder, environment = machine
    words = [sys.executable, "-m", "moe.launch", str(ranks), "job", str(folder), str(seconds)]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def jobs(folder):
    """(devices, local rank, begun, ended) of the jobs that have ended, by when they began."""
    noted = [path.read_text().split("|") for path in folder.glob("job-*")]
    return sorted(((d.split(","), int(r), float(b), float(e)) for d, r, b, e in noted), key=lambda job: job[2])


@pytest.mark.promise("GPUs side by side: a device each, none taken twice")
def test_jobs_side_by_side_have_a_device_each(machine):
    running = [start(machine) for _ in range(7)]
    assert [job.wait(60) for job in running] == [0] * 7
    done = jobs(machine[0])
    assert len(done) == 7 and {name for names, *_ in done for name in names} == set(DEVICES), "none is left out"
    for i, (names, rank, begun, ended) in enumerate(done):
        assert len(names) == 1 and rank == 0
        beside = [other for j, other in enumerate(done) if j != i and other[2] < ended and begun < other[3]]
        assert all(names != other[0] for other in beside), "none is taken twice"


def test_a_run_that_asks_for_two_gets_two(machine):
    alone, pair = start(machine), start(machine, ranks=2)
    assert alone.wait(60) == pair.wait(60) == 0
    pairs = [job for job in jobs(machine[0]) if len(job[0]) == 2]
    assert [rank for _, rank, *_ in sorted(pairs, key=lambda job: job[1])] == [0, 1]
    assert pairs[0][0] == pairs[1][0] and len(set(pairs[0][0])) == 2  # which of them is a rank's own LOCAL_RANK says


def test_a_run_that_asks_for_more_than_there_are_is_told_so(machine):
    job = start(machine, ranks=4)
    assert job.wait(60) == 2
    assert job.stderr.read() == "error: 4 ranks want a GPU each, this machine has 3: 3, GPU-b, 7\n"


@pytest.mark.promise("A killed job gives its GPU back")
def test_a_killed_job_gives_its_device_back(machine):
    killed = begun(machine, seconds=600.0)
    for job, rank in killed:
        job.kill()
        os.kill(rank, signal.SIGKILL)
    assert start(machine, seconds=0.0).wait(60) == 0


def test_a_rank_without_its_launcher_keeps_its_device(machine):
    for job, _ in begun(machine, seconds=3.0):
        job.kill()
    assert start(machine, seconds=0.0).wait(60) == 0
    *_, last = jobs(machine[0])
    before = [ended for names, _, begun, ended in jobs(machine[0]) if names == last[0] and begun < last[2]]
    assert len(before) == 1 and before[0] <= last[2]


def begun(machine, seconds):
    """(launcher, its rank) of a job on each device, all of them running."""
    folder, _ = machine
    launchers, limit = [start(machine, seconds=seconds) for _ in DEVICES], time.monotonic() + 60
    while len(list(folder.glob("begun-*"))) < len(DEVICES):
        assert time.monotonic() < limit
        time.sleep(0.01)
    ranks = [int(path.name.partition("-")[2]) for path in folder.glob("begun-*")]
    return list(zip(launchers, ranks, strict=True))
