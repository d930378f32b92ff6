"""The end of a training: metrics.csv, then done.json, which says that everything is there."""

import csv
import json
import platform
import shutil
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moe.checkpoints import replace, sha256

LIBRARIES = ("torch", "deepspeed", "datasets", "tokenizers")


def write_outcome(
    folder: Path,
    record: Path,
    snapshots: dict[str, tuple[Path, int]],
    tokens: Callable[[int], int],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write the declared outputs of a run and remove what an earlier setup of it left; what done.json says.

    record: the finished step-by-step record, beside the checkpoints. snapshots: label -> (file, step).
    tokens: of so many steps. facts: what else done.json says (who, how large, on what).
    """
    with open(record, newline="") as file:
        rows = list(csv.DictReader(file))
    seconds = [float(row["seconds"]) for row in rows]
    done = facts | {"steps": len(rows), "tokens": tokens(len(rows))}
    done["flops"] = sum(float(row["flops"]) for row in rows)  # forward and backward, of the experts that were active
    bound = [row["l1_bound"] for row in rows if row.get("l1_bound")]
    if bound:  # steps that λ ended at its bound: the model is sparser than its target by itself
        done["l1_bound_steps"] = bound.count("1.0")
    done |= {"seconds": sum(seconds), "median_step_seconds": statistics.median(seconds)}
    # the largest of all processes that trained it: the last one may have resumed at the end
    done["memory_gib"] = max(float(row["memory_gib"]) for row in rows)
    done["versions"] = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    done["snapshots"] = {
        label: {
            "file": str(path.relative_to(folder)),
            "step": step,
            "tokens": tokens(step),
            "sha256": sha256(path),
        }
        for label, (path, step) in snapshots.items()
    }
    replace(folder / "metrics.csv", record.read_bytes())
    replace(folder / "done.json", json.dumps(done, indent=1).encode())
    for kept in {record.parent, *(path.parent for path, _ in snapshots.values())}:
        for stale in kept.parent.iterdir():
            if stale != kept:
                shutil.rmtree(stale)
    return done
