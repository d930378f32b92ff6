"""What breaks under a training: disk, folder, clock, a rank. Nothing is lost, and what is said is one sentence."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_training import (
    ENVIRONMENT,
    assert_same_to_the_bit,
    command,
    corpus,  # noqa: F401 (a fixture)
    interrupted,
    train,
    trained,
    undisturbed,  # noqa: F401 (a fixture)
    wait_for,
    write_spec,
)

from moe.records import StepRecord

SIZE = 8 * 2**20  # bytes of a disk: room for a few checkpoints of a tiny model
BACKWARDS = """
import time
now = [time.time()]

def backwards():
    now[0] -= 3600
    return now[0]

time.time = backwards
"""
mounts = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root may mount a small disk")


@pytest.fixture
def disk(tmp_path):
    """A disk of its own; skipped where the system does not let even root have one."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def said(stderr: str) -> str:
    """The one sentence of an error."""
    assert "Traceback" not in stderr, stderr
    (sentence,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return sentence


@pytest.mark.promise(
    "A disk that fills up: one sentence, the checkpoint before it is whole, the same numbers once there is room"
)
@mounts
def test_a_disk_that_fills_up_costs_nothing_but_time(disk, undisturbed, corpus):  # noqa: F811
    folder = write_spec(disk / "run", checkpoint_every=1)
    process = subprocess.Popen(command(folder, corpus), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for(process, folder, "step-00000003")
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 2, stderr
    assert "No space left on device" in said(stderr) or "could not be written" in said(stderr)
    filler.unlink()
    assert_same_to_the_bit(trained(folder, corpus), undisturbed("relu"))


@mounts
def test_a_disk_that_fills_up_under_tensorboard_is_no_traceback(disk, capfd):
    """Its thread is the first to meet the full disk; the error is raised where a step is appended, and only there."""
    record = StepRecord(disk / "metrics.csv", ["step", "loss"], 0, disk / "tensorboard")
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(OSError, match="No space left"):
        for step in range(10_000):
            record.append({"step": step, "loss": 1.0})
    assert capfd.readouterr().err == ""
    other = threading.Thread(target=lambda: 1 / 0)
    other.start()
    other.join()
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.promise("A read-only results folder: one sentence, nothing lost")
@mounts
def test_a_folder_that_is_read_only_is_one_sentence(disk, undisturbed, corpus):  # noqa: F811
    folder = write_spec(disk / "run")
    code, stderr = interrupted(folder, corpus, after=5)
    assert code in (0, 75), stderr
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, stderr = train(folder, corpus)
    assert code == 2 and "Read-only file system" in said(stderr) and str(folder) in said(stderr)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert_same_to_the_bit(trained(folder, corpus), undisturbed("relu"))


@pytest.mark.promise("A clock that goes backwards: the same numbers")
def test_a_clock_that_goes_backwards_changes_nothing(undisturbed, corpus, tmp_path):  # noqa: F811
    """An hour a call, as if somebody set the clock all the time; what is timed is timed by another one."""
    (tmp_path / "sitecustomize.py").write_text(BACKWARDS)
    folder = write_spec(tmp_path / "run")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    done = subprocess.run(command(folder, corpus), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time() - time.time())"], env=environment, stdout=-1
    )
    assert float(seen.stdout) == 3600.0, "the clock was to go backwards"
    assert_same_to_the_bit(folder, undisturbed("relu"))


@pytest.mark.promise("A rank that dies takes its job down within 30 seconds and is named")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_dies_takes_the_job_down(number, undisturbed, corpus, tmp_path):  # noqa: F811
    folder = write_spec(tmp_path / "run", steps=4000, checkpoint_every=5)
    process = subprocess.Popen(command(folder, corpus, 2), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for(process, folder, "step-00000005")
    victim = next(pid for pid in children(process.pid) if b"\0RANK=1\0" in environment_of(pid))
    os.kill(victim, number)
    killed = time.monotonic()
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and time.monotonic() - killed < 30
    complaints = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert complaints[0] == f"error: rank 1 of 2 was ended by signal {int(number)}; the others are stopped"
    assert not list(children(process.pid)), "no rank is left behind"


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def environment_of(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
