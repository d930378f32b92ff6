"""Which tasks a run is to be scored on, and the harness' definition and the documents of each.

Local tasks are defined in `workflow/tasks` and made from held-out text of the corpus; benchmarks are the harness' own
definitions, unchanged, on data in the hub's layout.
"""

from pathlib import Path
from typing import NamedTuple

import yaml

from moe import benchmarks
from moe.command_line import note
from moe.wrong import did_you_mean

DEFINITIONS = Path(__file__).parent.parent / "tasks"


class Wanted(NamedTuple):
    """A row of scores.csv to be: the task, the metrics (empty: all of the task), and where its documents come from."""

    task: str
    metrics: list[str]
    source: str
    lines: dict  # what is added to the task's definition: `include`, and where the data lies
    group: str = ""  # the benchmark that it is one of several parts of


def wanted_tasks(tasks: dict, corpus_folder: Path, places: dict, *, required: bool) -> list[Wanted]:
    """Read `evaluation.tasks` of a spec: {"local": ["task" or "task/metric", …], "benchmark": […]}.

    A benchmark whose data is at none of the `places` is left out with a note, or a ValueError if `required`.
    """
    wanted: dict[str, list[Wanted]] = {}
    for kind, entries in tasks.items():
        if kind not in FINDERS:
            raise ValueError(f"evaluation.tasks: {kind!r} unknown{did_you_mean(kind, FINDERS)}")
        for task, _, metric in (entry.partition("/") for entry in entries):
            if task not in wanted:
                wanted[task] = FINDERS[kind](task, corpus_folder, places)
                if not wanted[task]:
                    missing = f"its data {benchmarks.benchmark(task).data} is in no mirror and was not fetched"
                    if required:
                        raise ValueError(f"evaluation.tasks: {task} is required, but {missing}")
                    note(f"{task} is left out: {missing}")
            for part in wanted[task] if metric else ():
                part.metrics.append(metric)
    return [part for parts in wanted.values() for part in parts]


def find_local(task: str, corpus_folder: Path, places: dict) -> list[Wanted]:
    """A local task, whose documents lie in the corpus."""
    definition, data = DEFINITIONS / f"{task}.yaml", corpus_folder / "tasks" / f"{task}.jsonl"
    if not definition.is_file():
        known = [path.stem for path in DEFINITIONS.glob("*.yaml")]
        raise ValueError(f"evaluation.tasks.local: {task!r} unknown{did_you_mean(task, known)}")
    if not data.is_file():
        raise ValueError(f"{data} does not exist: was the corpus prepared without local tasks?")
    kwargs = {"data_files": {"test": str(data.resolve())}}
    return [Wanted(task, [], "local", {"include": str(definition.resolve()), "dataset_kwargs": kwargs})]


def find_benchmark(task: str, corpus_folder: Path, places: dict) -> list[Wanted]:
    """A benchmark, or its parts; none where no place has its data."""
    if (found := benchmarks.locate(task, places)) is None:
        return []
    source, folder = found
    parts = benchmarks.definitions(task).items()
    return [
        Wanted(name, [], source, {"include": str(path), "dataset_path": str(folder)}, "" if name == task else task)
        for name, path in parts
    ]


FINDERS = {"local": find_local, "benchmark": find_benchmark}


def write_definitions(wanted: list[Wanted], folder: Path) -> None:
    """Write a definition of each task into `folder`: it includes the real one and says where the data lies."""
    for task in wanted:
        # The harness' copy of the data goes there too, and with it away: it is never stale and never shared.
        kwargs = task.lines.get("dataset_kwargs", {}) | {"cache_dir": str(folder / "cache")}
        lines = task.lines | {"dataset_kwargs": kwargs}
        (folder / f"{task.task}.yaml").write_text(yaml.safe_dump(lines))
