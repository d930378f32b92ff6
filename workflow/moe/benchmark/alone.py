"""A contender in a process of its own, as its users have it: no memory, threads or machine code of others beside it."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

import torch

from moe.benchmark.turns import wait


class Alone:
    """Calling it runs one step there.

    build: function of a module, which makes a step of what follows; it is called in the new process.
    Raises RuntimeError when the process has ended.
    """

    def __init__(self, build: Callable[..., Callable[[], float]], *arguments: Any, **options: Any):
        context = _context(build)
        self.pipe, theirs = context.Pipe()
        threads = torch.get_num_threads()
        self.process = context.Process(
            target=_serve, args=(theirs, threads, partial(build, *arguments, **options)), daemon=True
        )
        self.process.start()
        theirs.close()
        self._answer()

    def __call__(self) -> float:
        """The step's loss."""
        self.pipe.send("step")
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()

    def _answer(self) -> float:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"the contender's process ended with {self.process.exitcode}") from None


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module answers there; what it raises is raised here, and its memory ends with it."""
    with ProcessPoolExecutor(1, _context(function), _enter, (torch.get_num_threads(),)) as pool:
        return pool.submit(function, *arguments).result()


def in_processes(processes: int, function: Callable[..., Any], *arguments: Any) -> dict[str, list[float]]:
    """What a function answers in so many processes, one after the other: a dict of lists, each list continued."""
    answers = [in_own_process(function, *arguments) for _ in range(processes)]
    return {key: sum((answer[key] for answer in answers), []) for key in answers[0]}


def _context(function: Callable[..., Any]) -> BaseContext:
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__])  # imported once for all of them
    return context


def _enter(threads: int) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # of the process group of whoever asks
        os.environ.pop(name, None)
    torch.set_num_threads(threads)


def _serve(pipe: Connection, threads: int, build: Callable[[], Callable[[], float]]) -> None:
    _enter(threads)
    step = build()
    answer = 0.0
    while True:
        pipe.send(answer)
        try:
            pipe.recv()
        except EOFError:
            return
        answer = step()
        wait()
