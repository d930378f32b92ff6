"""Start the ranks of one training: `python -m moe.launch RANKS MODULE ARGUMENT …`.

One rank becomes the module itself, or has a warm process run it where there is one (moe.warm). Several are child
processes that find each other over loopback; signals go to all of them, and the exit code is theirs (75: a checkpoint
was written, run me again). torchrun does neither. In a job of Slurm the ranks are warned before its time is up, and the
job is queued again (moe.slurm). Imports little, since every job of the workflow starts here.
"""

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

# A step frees and takes the same large blocks: given back to the system each time, they cost a page fault a page
# (a third of a small model's step on a CPU). They stay with the process instead.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30)}
GRACE = 20  # seconds the others have to end by themselves once one rank has failed
AGAIN = 75  # exit code of a training that wrote a checkpoint and is to be run again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # are passed on

WITHOUT_GPU = ("moe.draw", "moe.freeze")
WARM = "REROUTED_WARM"  # environment variable: the socket of the workflow's warm process
STARTED = b"started"
PATIENCE = 60  # seconds that a warm process has to import what a module needs; a fresh one would need them, too
# What libraries read when they are loaded, so that a warm process must have been started with the same.
READ_ONCE = ("CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "PYTHONPATH")


def has_gpus() -> bool:
    """Whether there may be GPUs to share (moe.slots), found out without an import."""
    named = os.environ.get("REROUTED_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return bool(named) if named is not None else os.path.exists("/dev/nvidiactl")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(ranks: int, command: list[str], gpus: bool = False) -> int:
    """Run `command` once a rank and wait for all; the exit code of the rank that failed first, else 0.

    A rank that a signal ended is named at once, before the others complain of its loss; they have GRACE seconds.
    gpus: each rank waits for a GPU of its own. One of several nodes of a job of Slurm, each with a launcher, starts its
    own share of the ranks.
    """
    import subprocess  # a third of this module's start, for several ranks alone

    from moe.slurm import Allocation

    allocation = Allocation.of_this_job()
    if allocation is None or allocation.nodes == 1:
        first, here = 0, ranks
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    else:
        first, here = allocation.share(ranks)
        shared = allocation.rendezvous() | {"WORLD_SIZE": str(ranks)}
    held: list[int] = []
    if gpus:
        from moe import slots

        names, held = slots.claim(here)
        shared["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    children = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(first + rank), "LOCAL_RANK": str(rank)},
            pass_fds=held,
        )
        for rank in range(here)
    ]

    def forward(number, frame):
        for child in children:
            child.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, forward)
    failed, since = None, 0.0
    while any(child.poll() is None for child in children):
        if failed is None and (failed := next((child for child in children if child.poll()), None)):
            since = time.monotonic()
            if failed.returncode < 0:
                ended = f"rank {first + children.index(failed)} of {ranks} was ended by signal {-failed.returncode}"
                print(f"error: {ended}; the others are stopped", file=sys.stderr, flush=True)
        if failed is not None and time.monotonic() - since > GRACE:  # left waiting for a rank that is gone
            for child in children:
                child.kill()
        if allocation is not None and allocation.time_is_up():
            forward(signal.SIGUSR1, None)
        time.sleep(0.05)
    code = (failed or next((child for child in children if child.returncode), children[0])).returncode
    code = code if allocation is None else told_slurm(allocation, code)
    return code if code >= 0 else 128 - code


def told_slurm(allocation, code: int) -> int:
    """How the ranks of a job of Slurm have ended; where that was for the end of its time, the job is queued again.

    allocation: moe.slurm.Allocation.
    """
    if allocation.warned and code == -signal.SIGUSR1:
        code = AGAIN  # warned before it listened, so nothing was begun that could be lost
    if code == AGAIN and allocation.near_its_end():
        allocation.queue_again()
    return code


def likeness() -> dict:
    """What a warm process and the one that it stands in for must have in common."""
    # a job of a cluster must not leave its allocation for the machine that it was submitted from
    kept = {name: os.environ.get(name) for name in (*READ_ONCE, "SLURM_JOB_ID")}
    return kept | {"python": os.path.realpath(sys.prefix), "package": str(Path(__file__).resolve().parent)}


def run_warm(module: str, arguments: list[str]) -> int | None:
    """Have the warm process run a module; its exit code, −n where signal n ended it.

    None where there is no such process, it declines (moe.warm says when), or it is lost before the job has ended: the
    job then ends with it, and is to be begun anew.
    """
    if not os.environ.get(WARM):
        return None
    request = {"module": module, "arguments": arguments, "likeness": likeness()}
    request |= {"environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path}
    told = []

    def forward(number, frame):
        told.append(number)
        with suppress(OSError):  # the process is gone, which `answer` will say
            server.send(bytes([number]))

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.settimeout(PATIENCE)
            server.connect(os.environ[WARM])
            socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
            if server.recv(16) != STARTED:
                return None
            for number in SIGNALS:
                signal.signal(number, forward)
            answer = listen(server)
        except OSError:
            answer = b""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    if answer:
        return int(answer)
    return -told[-1] if told else None  # asked to end: it has, and is not begun anew


def listen(server: socket.socket) -> bytes:
    """What the warm process says in the end; in a job of Slurm it is warned when the job's time is up."""
    if "SLURM_JOB_ID" not in os.environ:
        server.settimeout(None)
        return server.recv(16)
    from moe.slurm import Allocation

    allocation = Allocation.of_this_job()
    server.settimeout(0.5)
    while True:
        with suppress(TimeoutError):
            answer = server.recv(16)
            return answer if allocation is None or not answer else str(told_slurm(allocation, int(answer))).encode()
        if allocation is not None and allocation.time_is_up():
            server.send(bytes([signal.SIGUSR1]))


def end_as(code: int) -> None:
    """End this process as another one ended."""
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def main() -> None:
    ranks, module, *arguments = sys.argv[1:]
    command = [sys.executable, "-m", module, *arguments]
    os.environ.update(ALLOCATOR)
    gpus = module not in WITHOUT_GPU and "SLURM_JOB_ID" not in os.environ and has_gpus()
    if int(ranks) == 1 and not gpus:
        code = run_warm(module, arguments)
        if code is not None:
            end_as(code)
        if "SLURM_JOB_ID" not in os.environ:
            os.execv(sys.executable, command)
    try:
        sys.exit(launch(int(ranks), command, gpus))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
