"""Start the ranks of one training on this machine: `python -m moe.launch RANKS MODULE ARGUMENT …`.

One rank becomes the module itself. Several are child processes that find each other over loopback; signals go to all
of them, and the exit code is theirs (75: a checkpoint was written, run me again). torchrun does neither.
"""

import os
import signal
import socket
import subprocess
import sys
import time

# A step frees and takes the same large blocks: given back to the system each time, they cost a page fault a page
# (a third of a small model's step on a CPU). They stay with the process instead.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30)}
GRACE = 60  # seconds the others have to end by themselves once one rank has failed


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(ranks: int, command: list[str]) -> int:
    """Run `command` once a rank and wait for all; the first exit code that is not 0, else 0."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    children = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]

    def forward(number, frame):
        for child in children:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, forward)
    failed_since = None
    while any(child.poll() is None for child in children):
        if any(child.poll() for child in children):
            failed_since = failed_since or time.monotonic()
            if time.monotonic() - failed_since > GRACE:  # left waiting for a rank that is gone
                for child in children:
                    child.kill()
        time.sleep(0.05)
    return next((child.returncode for child in children if child.returncode), 0)


def main() -> None:
    ranks, module, *arguments = sys.argv[1:]
    command = [sys.executable, "-m", module, *arguments]
    os.environ.update(ALLOCATOR)
    if int(ranks) == 1:
        os.execv(sys.executable, command)
    sys.exit(launch(int(ranks), command))


if __name__ == "__main__":
    main()
