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
FELT = 1e-6  # of the loss: a penalty that adds less decides nothing
LONG = 0.1  # of the steps: λ often comes back from a shorter dip (docs/scales.md)


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
    done |= penalty_facts(rows)
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


def penalty_facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What became of λ, by the rows of metrics.csv; nothing of a router that has none.

    l1_lambda_max, l1_lambda_end: its largest and its last value. l1_bound_steps: steps that it ended at either bound,
    l1_upper_bound_steps: at the upper one. l1_faded_steps: steps since the last one in which the penalty added at least
    a millionth of the loss; 0 where none did, as when a short training ends before λ has grown.
    """
    rows = [row for row in rows if row.get("l1_lambda")]
    if not rows:
        return {}
    lambdas, bounds = ([float(row[name]) for row in rows] for name in ("l1_lambda", "l1_bound"))
    felt = [i for i, row in enumerate(rows) if float(row["router_loss"]) >= FELT * float(row["loss"])]
    return {
        "l1_lambda_max": max(lambdas),
        "l1_lambda_end": lambdas[-1],
        "l1_bound_steps": sum(bound != 0 for bound in bounds),
        "l1_upper_bound_steps": sum(bound > 0 for bound in bounds),
        "l1_faded_steps": len(rows) - 1 - felt[-1] if felt else 0,
    }


def penalty_warnings(done: dict[str, Any]) -> list[str]:
    """Where λ did not hold the sparsity at its target: sentences for the user, from what done.json says."""
    steps, said = done["steps"], []
    upper = done.get("l1_upper_bound_steps", 0)
    if lower := done.get("l1_bound_steps", 0) - upper:
        said.append(
            f"λ lay at its lower bound in {lower} of {steps} steps: the sparsity lay above its target, and a penalty "
            "can shut gates but not open them"
        )
    if upper:
        said.append(
            f"λ lay at its upper bound in {upper} of {steps} steps: the gates were denser than their target although "
            "the penalty was as large as it may be"
        )
    if (faded := done.get("l1_faded_steps", 0)) > LONG * steps:
        said.append(
            f"λ fell from {done['l1_lambda_max']:.1e} to {done['l1_lambda_end']:.1e}: in the last {faded} of {steps} "
            "steps the penalty added less than a millionth of the loss, since the sparsity lay at or above its target "
            "in more steps than below it"
        )
    return said
