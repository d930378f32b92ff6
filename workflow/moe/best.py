"""The weights of the lowest validation loss so far, kept so that a snapshot may be them rather than the latest."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Best:
    """Follows a training's validations; one file for each that was the best, the older ones removed in time.

    Which step was the best follows from the record alone, so a resumed training finds it there.
    """

    def __init__(self, folder: Path):
        self.folder, self.loss, self.step = folder, float("inf"), 0
        self.wanted: set[int] = set()  # files that a checkpoint may go back to

    def resume(self, record: Path, start: int) -> None:
        """Read the validations of the first `start` steps from metrics.csv."""
        if start:
            step, loss = best_of(record, start)
            if self.path(step).is_file():
                self.loss, self.step = loss, step

    def path(self, step: int) -> Path:
        """Where the weights of a step lie."""
        return self.folder / f"best-{step:08d}.safetensors"

    def validated(self, row: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Take note of a metrics row that has a valid_loss; save(path) keeps the weights where it is the lowest."""
        if row["valid_loss"] < self.loss:
            self.loss, self.step = row["valid_loss"], row["step"]
            save(self.path(self.step))

    def copy(self, path: Path) -> None:
        """Make the best so far the snapshot `path`."""
        aside = path.with_suffix(".writing")
        shutil.copyfile(self.path(self.step), aside)
        aside.rename(path)

    def prune(self, last: bool = False) -> None:
        """After a checkpoint: remove what neither it nor the one before it can go back to; after the end, all."""
        kept = set() if last else self.wanted | {self.step}
        for path in self.folder.glob("best-*.safetensors"):
            if path not in map(self.path, kept):
                path.unlink()
        self.wanted = {self.step}


def best_of(record: Path, until: int) -> tuple[int, float]:
    """Step and loss of the best validation in metrics.csv up to a step; that step itself where there was none."""
    with open(record, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["valid_loss"] and int(row["step"]) <= until]
    losses = {int(row["step"]): float(row["valid_loss"]) for row in rows}
    step = min(losses, key=losses.get, default=until)
    return step, losses.get(step, float("inf"))
