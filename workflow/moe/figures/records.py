"""Reading the files of a finished run, and saying which one is missing."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # pandas is loaded when a file is read: checking the tables needs none of it
    import pandas as pd

KEPT = 128  # files of runs that are held in memory: many parts of claims compare the same runs


class Record(NamedTuple):
    """One seed of one run: the row of the run, the seed, its folder results/{scale}/runs/{run}/seed-{seed}."""

    run: dict
    seed: int
    folder: Path

    def path(self, name: str) -> Path:
        """A file of the seed; published ones may be compressed. Errors: ValueError naming run, seed and path."""
        for path in (self.folder / name, self.folder / f"{name}.xz"):
            if path.is_file():
                return path
        raise ValueError(f"run {self.run['run']}, seed {self.seed}: {self.folder / name} is missing.")

    def read(self, name: str) -> "pd.DataFrame":
        """A CSV file of the seed, not to be changed in place. Errors: ValueError if it is missing."""
        path = self.path(name)
        facts = path.stat()
        return _read(path, facts.st_mtime_ns, facts.st_size)

    def steps(self) -> "pd.DataFrame":
        """metrics.csv, one row a step. Errors: ValueError if it is missing or has no step."""
        frame = self.read("metrics.csv")
        if frame.empty:
            raise ValueError(f"run {self.run['run']}: {self.folder / 'metrics.csv'} has no step.")
        return frame

    def spec(self) -> dict:
        """run.yaml: all that decides the run. Errors: ValueError if it is missing."""
        import yaml

        return yaml.safe_load(self.path("run.yaml").read_text(encoding="utf-8"))

    def done(self) -> dict:
        """done.json: what the training left. Errors: ValueError if it is missing."""
        return json.loads(self.path("done.json").read_text(encoding="utf-8"))

    @property
    def results(self) -> Path:
        """The scale's folder, above runs/{run}/seed-{n}."""
        return self.folder.parents[2]


@lru_cache(maxsize=KEPT)
def _read(path: Path, changed: int, size: int) -> "pd.DataFrame":
    import pandas as pd

    def wanted(column: str) -> bool:  # of metrics.csv no figure shows the layers one by one, and there may be many
        return not re.fullmatch(r"(sparsity|load)_\d+", column)

    return pd.read_csv(path, dtype={"snapshot": str}, keep_default_na=False, na_values=[""], usecols=wanted)


def records(run: dict) -> list[Record]:
    """Every seed of a run, in order. Errors: ValueError if there is none."""
    folder = Path(run["folder"])
    found = sorted(int(path.name.removeprefix("seed-")) for path in folder.glob("seed-*"))
    seeds = list(run.get("seeds") or found)
    if not seeds:
        raise ValueError(f"run {run['run']}: {folder} holds no seed-* folder.")
    return [Record(run, int(seed), folder / f"seed-{seed}") for seed in seeds]


def snapshots_of(record: Record) -> list[str]:
    """Labels of a run's snapshots, earliest first."""
    frame = record.read("validation.csv").drop_duplicates("snapshot").sort_values("step")
    return [str(label) for label in frame["snapshot"]]


def target_sparsity(run: dict) -> float:
    """1 - k/E, the sparsity that ReLU routing is steered to (ReMoE, equation 7)."""
    return 1 - int(run["top_k"]) / int(run["experts"])


def total_experts(run: dict) -> int:
    """E·G, the experts of a layer."""
    return int(run["experts"]) * int(run["granularity"])


def all_steps(run: dict) -> "pd.DataFrame":
    """metrics.csv of every seed, one under the other, with the columns run and seed in front."""
    import pandas as pd

    each = [record.steps().assign(run=run["run"], seed=record.seed) for record in records(run)]
    frame = pd.concat(each, ignore_index=True)
    return frame[["run", "seed", *(c for c in frame if c not in ("run", "seed"))]]
