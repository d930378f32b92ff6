"""The step-by-step record of a run: a CSV row a step, the same as TensorBoard scalars, a progress line now and then."""

import csv
import os
import sys
import threading
from pathlib import Path
from typing import Any

from tqdm import tqdm

PROGRESS_SECONDS = 5


class StepRecord:
    """Appends rows to `path`; a resumed run drops the rows after its checkpoint first.

    columns: fixed beforehand, so that a column that is empty for a while stays a column.
    """

    def __init__(self, path: Path, columns: list[str], start: int, tensorboard: Path | None = None):
        self.path, self.columns = path, columns
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._rows_before(start) if start else []
        aside = path.with_suffix(".writing")
        with open(aside, "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        aside.rename(path)
        self.file = open(path, "a", newline="")  # noqa: SIM115 (open for as long as the run)
        self.writer = csv.writer(self.file)
        self.board = None
        if tensorboard is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary
            from torch.utils.tensorboard import SummaryWriter  # a second of import that a test need not pay

            threading.excepthook = _leave_to_the_writer
            self.board, self.summary = SummaryWriter(tensorboard, purge_step=start + 1), Summary
            self.tags = {name: name.replace("_", "/", 1) if name[-1].isdigit() else name for name in columns[1:]}

    def _rows_before(self, start: int) -> list[list[str]]:
        with open(self.path, newline="") as file:
            rows = list(csv.reader(file))
        if not rows or rows[0] != self.columns:
            raise ValueError(f"{self.path}: has other columns than this run writes; delete its folder to start anew")
        kept = rows[1 : start + 1]
        if len(kept) < start:
            raise ValueError(f"{self.path}: holds {len(kept)} steps, the checkpoint to resume from is of step {start}")
        return kept

    def append(self, row: dict[str, Any]) -> None:
        """Add one step; values missing or None stay empty."""
        unknown = set(row) - set(self.columns)
        assert not unknown, unknown
        self.writer.writerow(["" if row.get(c) is None else row[c] for c in self.columns])
        if self.board is not None:  # one event a step: one for each scalar takes seven times as long
            shown = [(tag, row[name]) for name, tag in self.tags.items() if row.get(name) is not None]
            values = [self.summary.Value(tag=tag, simple_value=value) for tag, value in shown]
            self.board.file_writer.add_summary(self.summary(value=values), row["step"])

    def sync(self) -> None:
        """Have the rows on disk: before a checkpoint that counts on them."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        self.sync()
        self.file.close()
        if self.board is not None:
            self.board.close()


def _leave_to_the_writer(failure: threading.ExceptHookArgs) -> None:
    """Print what ended a thread, but not TensorBoard's: its writer raises the same error in the next call."""
    if not type(failure.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failure)


class _Lines:
    """A stream for tqdm that ends each refresh with a newline: several jobs may share one terminal."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n \x1b[A")
        if text:
            print(text, file=sys.stderr, flush=True)  # sys.stderr as it is now: it may be copied to a log

    def flush(self) -> None:
        pass


def progress(name: str, total: int, start: int) -> tqdm:
    """A tqdm over optimiser steps that prints a line every few seconds: run, step, time left, rate, postfix."""
    return tqdm(
        desc=name,
        total=total,
        initial=start,
        unit="step",
        file=_Lines(),
        mininterval=PROGRESS_SECONDS,
        maxinterval=PROGRESS_SECONDS,
        ncols=120,
        bar_format="{desc}  step {n_fmt}/{total_fmt}  {postfix}  {remaining} left",
        delay=1,
    )
