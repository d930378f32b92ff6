"""The papers' benchmarks: their harness definition, where their data lies offline, and how to fetch it.

    python -m moe.benchmarks --output FOLDER [TASK ...]

is the only command here that uses the network. It writes the hub's layout, so that a fetched folder and a mirror are
read alike.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from moe.command_line import exit_code
from moe.data.storage import read_json, sha256_of, write_json
from moe.data.stores import Hub
from moe.wrong import did_you_mean


class Benchmark(NamedTuple):
    """A task of the harness: its file below the harness' tasks, its data set on the hub, the pinned revision.

    A pattern instead of a file: a benchmark of several tasks, whose score is the mean over all of their documents.
    """

    file: str
    data: str
    revision: str | None  # None: whatever is current at the first fetch, which the manifest then pins


ARC = ("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453")
LAMBADA = ("EleutherAI/lambada_openai", "900124bf3b8235c6daf21033af9948b3f07346c4")
BENCHMARKS = {
    "arc_challenge": Benchmark("arc/arc_challenge.yaml", *ARC),
    "arc_easy": Benchmark("arc/arc_easy.yaml", *ARC),
    "boolq": Benchmark(
        "super_glue/boolq/default.yaml",
        "aps/super_glue",
        "3de24cf8022e94f4ee4b9d55a6f539891524d646",
    ),
    "gsm8k": Benchmark("gsm8k/gsm8k.yaml", "openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee"),
    "hellaswag": Benchmark(
        "hellaswag/hellaswag.yaml",
        "Rowan/hellaswag",
        "218ec52e09a7e7462a5400043bb9a69a41d06b76",
    ),
    "lambada_openai": Benchmark("lambada/lambada_openai.yaml", *LAMBADA),
    "mmlu": Benchmark("mmlu/default/mmlu_*.yaml", "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe"),
    "piqa": Benchmark("piqa/piqa.yaml", "baber/piqa", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"),
    "race": Benchmark("race/race.yaml", "EleutherAI/race", None),
    "sciq": Benchmark("sciq/sciq.yaml", "allenai/sciq", "2c94ad3e1aafab77146f384e23536f97a4849815"),
}


def benchmark(task: str) -> Benchmark:
    """The benchmark of this name, or ValueError with the nearest one."""
    if task not in BENCHMARKS:
        raise ValueError(f"evaluation.tasks.benchmark: {task!r} unknown{did_you_mean(task, BENCHMARKS)}")
    return BENCHMARKS[task]


def definitions(task: str) -> dict[str, Path]:
    """The harness' own, unmodified files by the tasks that they define (found without importing the harness)."""
    package, file = importlib.util.find_spec("lm_eval"), benchmark(task).file
    folder = Path(package.submodule_search_locations[0]) / "tasks"
    if "*" not in file:
        return {task: folder / file}
    return {path.stem: path for path in sorted(folder.glob(file))}


def locate(task: str, places: dict[str, Path | None]) -> tuple[str, Path] | None:
    """The first place (its name, the data's folder) that holds a task's data; None where none does.

    `places`: name -> folder in the hub's layout (owner/name/…), or None where not configured.
    """
    for name, place in places.items():
        folder = place and Path(place) / benchmark(task).data
        if folder and any(folder.rglob("*.parquet")):
            return name, folder.resolve()
    return None


def fetch(tasks: list[str], folder: Path) -> dict:
    """Download the data of `tasks` below `folder` at the pinned revisions; returns and writes the manifest.

    Goes on where it was interrupted. Raises ValueError where the hub cannot be asked, and for a file that has another
    SHA-256 than the hub, or the manifest of an earlier fetch, recorded.
    """
    path = folder / "manifest.json"
    manifest = read_json(path) if path.is_file() else {}
    for name, pinned in {benchmark(task).data: benchmark(task).revision for task in tasks}.items():
        before = manifest.get(name, {})
        revision = pinned or before.get("revision") or current_revision(name)
        hub, files = Hub(name, revision, "dataset"), {}
        for file, recorded in hub.files.items():
            if file.endswith(".py"):
                continue  # a data set's code is never run here
            target = folder / name / file
            known = before.get("files", {}).get(file)
            if not (known and target.is_file() and sha256_of(target) == known):
                hub.copy(file, folder / name)
            files[file] = sha256_of(target)
            expected = recorded.get("sha256") or known or files[file]
            if files[file] != expected:
                target.unlink()
                raise ValueError(f"{target}: SHA-256 {files[file]}, expected {expected}; it is deleted, fetch again")
        manifest[name] = {"revision": revision, "files": files}
        write_json(path, manifest)
    return manifest


def current_revision(name: str) -> str:
    """The commit that a data set without a pinned one has now."""
    import huggingface_hub  # here, since all else in this module works without the network's client

    try:
        return huggingface_hub.HfApi().dataset_info(name).sha
    except Exception as error:  # whatever the client raises
        raise ValueError(
            f"{name}: the hub cannot be asked ({type(error).__name__}); try again or set a mirror"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Command line; 2 and one sentence for an error of the user."""
    parser = argparse.ArgumentParser(description="Download benchmark data in the hub's layout.")
    parser.add_argument("tasks", nargs="*", default=[], help="default: all")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    return exit_code(lambda: fetch(options.tasks or list(BENCHMARKS), options.output) and None)


if __name__ == "__main__":
    sys.exit(main())
