"""Reading the files of a finished run, and saying which one is missing."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # pandas is loaded when a file is read: checking the tables needs none of it
    import pandas as pd


class Record(NamedTuple):
    """One seed of one run: the row of the run, the seed, its folder results/{scale}/runs/{run}/seed-{seed}."""

    run: dict
    seed: int
    folder: Path

    def read(self, name: str) -> "pd.DataFrame":
        """A CSV file of the seed. Errors: ValueError naming run, seed and path if it is missing."""
        import pandas as pd

        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"run {self.run['run']}, seed {self.seed}: {path} is missing.")
        return pd.read_csv(path, dtype={"snapshot": str}, keep_default_na=False, na_values=[""])

    def steps(self) -> "pd.DataFrame":
        """metrics.csv, one row a step. Errors: ValueError if it is missing or has no step."""
        frame = self.read("metrics.csv")
        if frame.empty:
            raise ValueError(f"run {self.run['run']}: {self.folder / 'metrics.csv'} has no step.")
        return frame


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


def all_steps(run: dict) -> "pd.DataFrame":
    """metrics.csv of every seed, one under the other, with the columns run and seed in front."""
    import pandas as pd

    each = [record.steps().assign(run=run["run"], seed=record.seed) for record in records(run)]
    frame = pd.concat(each, ignore_index=True)
    return frame[["run", "seed", *(c for c in frame if c not in ("run", "seed"))]]
