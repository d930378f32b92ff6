"""A process that has imported what the jobs of a workflow need, and forks each of them.

Most of a small job is the import of PyTorch, DeepSpeed, lm-eval or Matplotlib: 1 to 3 seconds. The workflow starts one
such process where that counts: on one machine without a GPU, for what a cluster's workflow runs itself, and in the job
of a cluster that is a group of ours; `python -m moe.launch 1 MODULE …` then asks it, over a socket, for a child that
runs the module in its stead: with its arguments, environment, folder and streams. What a module needs is imported when
it is first asked for, so nothing is imported in vain. The process has one thread and has computed nothing, so a child
is as a fresh process is; whatever could make it another one (see `Warm.why_not`) is declined, and moe.launch goes on
alone.

It ends with its owner, whose end of a pipe is its standard input; its children end with it and with their clients.
"""

import atexit
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from moe.launch import ALLOCATOR, SIGNALS, STARTED, WARM, likeness

# module that may be run -> what it imports only once it runs
COMMANDS = {
    "moe.train": ("torch.utils.tensorboard",),
    "moe.finetune": ("torch.utils.tensorboard",),
    "moe.validate": (),
    "moe.evaluate": (),
    "moe.probe": (),
    "moe.draw": ("moe.figures.style",),
    "moe.freeze": (),
}
ENDURED = "jemalloc_bg_thd"  # a thread of pyarrow's allocator, which minds forks itself
LARGEST = 2**20  # bytes of a request

ended: list[int | str | None] = []  # what the module of a child returned or exited with


def start(path: str) -> subprocess.Popen:
    """Start a warm process that listens at `path` and ends with this one; jobs find it by their environment.

    path: relative to the current folder, since a socket's path has 107 bytes at most.
    """
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        mask = os.umask(0o177)  # for this user alone
        listener.bind(path)
        os.umask(mask)
        listener.listen(64)
        os.environ[WARM] = path
        owner, _ = os.pipe()  # nothing is written to it; its other end stays open as long as this process
        one_thread = {f"{library}_NUM_THREADS": "1" for library in ("MKL", "OMP", "OPENBLAS")}
        process = subprocess.Popen(
            [sys.executable, "-m", "moe.warm", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env=os.environ | ALLOCATOR | one_thread,
            stdin=owner,
            stdout=subprocess.DEVNULL,
            stderr=open(f"{path}.log", "w"),  # noqa: SIM115 (for as long as the process)
            start_new_session=True,  # a signal to the workflow's group is for the jobs
        )
    os.close(owner)
    return process


class Warm:
    """The sockets and children of a warm process."""

    def __init__(self, listener: socket.socket):
        self.likeness, self.edited, self.before = likeness(), edited(), dict(os.environ)
        self.watched = selectors.PollSelector()  # an epoll would be shared with the children
        self.watched.register(0, selectors.EVENT_READ, self.end)
        self.watched.register(listener, selectors.EVENT_READ, self.accept)
        self.children: dict[socket.socket, int] = {}  # client -> a descriptor of its child's process

    def serve(self) -> dict:
        """Answer until a fork: its child returns with the request, and this process never does."""
        request = None
        while request is None:
            for key, _ in self.watched.select()[:1]:  # one at a time: it may change what the others mean
                request = key.data(key.fileobj)
        return request

    def end(self, owner: int) -> NoReturn:
        """End since the owner is gone, and with this process its children."""
        os._exit(0)

    def accept(self, listener: socket.socket) -> None:
        """A client, which will say what it wants."""
        self.watched.register(listener.accept()[0], selectors.EVENT_READ, self.begin)

    def begin(self, client: socket.socket) -> dict | None:
        """Fork a child for a client's request; the request in the child, None here."""
        self.watched.unregister(client)
        try:
            packet, streams, _, _ = socket.recv_fds(client, LARGEST, 3)
            request = json.loads(packet)
            refusal = self.why_not(request) or load(request["module"])
        except (OSError, ValueError) as error:  # a client that is gone
            streams, refusal = [], str(error)
        if refusal:
            print(f"declined: {refusal}", file=sys.stderr, flush=True)
        else:
            server, child = os.getpid(), os.fork()
            if child == 0:
                return request | {"server": server, "client": client, "streams": streams}
            print(f"{request['module']}: process {child}", file=sys.stderr, flush=True)
            handle = os.pidfd_open(child)
            self.children[client] = handle
            self.watched.register(handle, selectors.EVENT_READ, lambda handle: self.reap(handle, child, client))
            self.watched.register(client, selectors.EVENT_READ, self.tell)
        for stream in streams:
            os.close(stream)
        if refusal:
            client.close()
        return None

    def why_not(self, request: dict) -> str | None:
        """Why a child of this process would not do what a fresh one does, if so."""
        if request["module"] not in COMMANDS:
            return f"{request['module']} is none of {', '.join(COMMANDS)}"
        for name, value in request["likeness"].items():
            if value != self.likeness[name]:
                return f"{name} is {value}, not {self.likeness[name]}"
        return "the package has been edited" if edited() != self.edited else None

    def tell(self, client: socket.socket) -> None:
        """Pass a client's signals on to its child; kill the child of a client that is gone."""
        try:
            numbers = client.recv(16)
        except OSError:
            numbers = b""
        if not numbers:
            self.watched.unregister(client)
        for number in numbers or [signal.SIGKILL]:
            signal.pidfd_send_signal(self.children[client], number)

    def reap(self, handle: int, child: int, client: socket.socket) -> None:
        """Tell a client how its child ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.watched.unregister(handle)
        os.close(handle)
        if client in self.watched.get_map():
            self.watched.unregister(client)
        del self.children[client]
        with suppress(OSError):  # it may be gone
            client.send(str(code).encode())
        client.close()

    def leave(self) -> None:
        """In a child: close what is the parent's."""
        for key in list(self.watched.get_map().values()):
            os.close(key.fd) if isinstance(key.fileobj, int) else key.fileobj.close()


def edited() -> float:
    """When the package was last edited."""
    return max(path.stat().st_mtime for path in Path(__file__).parent.rglob("*.py"))


def load(module: str) -> str | None:
    """Import what a module needs; why that failed, if it did."""
    try:
        for name in (module, *COMMANDS[module]):
            import_module(name)
    except Exception as error:  # a fresh process will say it better
        return f"{module}: {error!r}"
    gc.collect()
    gc.freeze()  # so that no collection in a child touches, and so copies, what it shares with this process
    threads = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    names = {(task / "comm").read_text().strip() for task in threads} - {ENDURED}
    return f"{module} has started threads: {', '.join(names)}" if names else None


def become(request: dict, before: dict[str, str]) -> None:
    """In a child: take the client's place. before: the environment before anything was imported."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when the parent ends
    if os.getppid() != request["server"]:
        os._exit(1)
    for number in (*SIGNALS, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for place, stream in enumerate(request["streams"]):
        os.dup2(stream, place)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    imposed = {name: value for name, value in os.environ.items() if before.get(name) != value}  # by what was imported
    os.environ.clear()
    os.environ.update(request["environment"] | imposed)
    os.chdir(request["folder"])
    sys.path[:] = request["path"]
    sys.argv = [sys.modules[request["module"]].__file__, *request["arguments"]]
    tempfile.tempdir = None
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else the same in every child; `random` sees to it itself
    try:
        request["client"].send(STARTED)
    except OSError:  # it has waited for too long, and gone on alone
        os._exit(1)
    request["client"].close()


def run(module: str) -> NoReturn:
    """In a child: run a module and end as it does, without taking apart what the parent has imported (0.2 s)."""
    try:
        ended.append(sys.modules[module].main())
    except SystemExit as end:
        ended.append(end.code)
    sys.exit(ended[0])


def leave_at_once() -> None:
    """The last thing that a child does at its end, after all that others have registered to be done then."""
    if ended and (ended[0] is None or isinstance(ended[0], int)):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0] or 0)


def main() -> None:
    atexit.register(leave_at_once)  # registered first, called last
    listener = socket.socket(fileno=int(sys.argv[1]))
    for number in (*SIGNALS, signal.SIGHUP):  # are for the jobs, by way of their clients
        signal.signal(number, signal.SIG_IGN)
    os.close(os.pidfd_open(os.getpid()))  # a system without them ends here
    warm = Warm(listener)
    request = warm.serve()
    warm.leave()
    become(request, warm.before)
    run(request["module"])


if __name__ == "__main__":
    main()
