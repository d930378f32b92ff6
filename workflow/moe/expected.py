"""What the runs of a scale will cost on given hardware, before anything starts: `snakemake cost`."""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moe.accounting import sequence_flops, step_flops
from moe.checkpoints import KEPT
from moe.layout import COPIES, Estimate, Hardware, best, sizes_of
from moe.table_checks import DENSE

COLUMNS = ["run", "setup", "parameters", "steps", "micro_batch", "expert_ranks", "memory_gib", "sent_gb_a_step"]
PROCESS_MB = 4000  # of any job: measured 1100 with all imports (docs/cluster.md), and the harness' data
COLUMNS += ["seconds_a_step", "flops", "hours", "gpu_hours", "disk_gb"]


def row_of(spec: dict[str, Any], hardware: Hardware, ranks: int) -> dict[str, Any]:
    """One run with one seed; hours are missing where it fits in no way, or its steps are not known yet.

    FLOPs are those of training, forward and backward, and of the validations in it. Steps that a run gets to match the
    compute of another one are known only later, the setup's are counted; those of fine-tuning, which an instruction set
    decides, are left out.
    """
    model, training, sizes = spec["model"], spec["training"], sizes_of(spec)
    steps, parameters = training.get("steps", 0), sizes.shared + sizes.routed
    active = None if model["router"]["name"] == DENSE else model["top_k"] * model["granularity"]
    applied = model["experts"] if active is None else model["top_k"]
    windows = (steps // training["validate_every"] + 1) * training["validate_windows"]
    flops = {
        "training": steps * step_flops(spec, active),
        "validation": (steps > 0) * windows * sequence_flops(model, training["sequence"], float(applied)) / 3,
    }
    row = {"run": spec["run"], "setup": spec["setup"], "parameters": parameters, "steps": steps}
    row |= {"flops": sum(flops.values())}
    size = 4 if training.get("precision") == "float32" else 2
    row["disk_gb"] = parameters * (KEPT * COPIES + len(spec["snapshots"]) * size) / 1e9
    found: Estimate | None = best(spec, hardware, ranks)
    if found is None:
        return row
    row |= {"micro_batch": found.micro_batch, "expert_ranks": found.expert_ranks, "memory_gib": found.memory_gib}
    row |= {"sent_gb_a_step": found.sent_gb, "seconds_a_step": found.seconds}
    if not steps:
        return row
    seconds = steps * found.seconds * row["flops"] / flops["training"]
    return row | {"hours": seconds / 3600, "gpu_hours": ranks * seconds / 3600}


def minutes_trained(spec: dict[str, Any], hardware: Hardware, ranks: int) -> int | None:
    """Minutes to ask a cluster for: half more than the estimate, and half an hour.

    None where the run fits in no way or its steps are not known yet.
    """
    row = row_of(spec, hardware, ranks)
    return 30 + int(90 * row["hours"]) if "hours" in row else None


def minutes_read(spec: dict[str, Any], hardware: Hardware, ranks: int, tokens: int) -> int | None:
    """As minutes_trained, of one GPU that reads `tokens` with each snapshot: a third of what training on them takes."""
    found, training = best(spec, hardware, ranks), spec["training"]
    if found is None:
        return None
    seconds_a_token = found.seconds * ranks / (training["batch"] * training["sequence"]) / 3
    return 30 + int(1.5 * len(spec["snapshots"]) * tokens * seconds_a_token / 60)


def mb_trained(spec: dict[str, Any], ranks: int, gpus: bool) -> int:
    """MB of the machine's memory that each rank asks for.

    What it imports and maps, the weights that it makes, without a GPU their gradients, and its share of a checkpoint.
    """
    sizes = sizes_of(spec)
    held = sizes.shared + sizes.routed / spec["training"].get("expert_ranks", 1)
    return PROCESS_MB + int(((4 if gpus else 8) * held + COPIES * sum(sizes) / ranks) / 2**20)


def mb_read(spec: dict[str, Any]) -> int:
    """As mb_trained, of a process that reads text with a finished run: its weights, twice while they are loaded."""
    return PROCESS_MB + int(8 * sum(sizes_of(spec)) / 2**20)


def write(specs: list[dict[str, Any]], seeds: list[int], hardware: Hardware, ranks: int, output: Path) -> str:
    """Write a row of each run to `output`; the page that says it in words and sums. seeds: how many of each run."""
    rows = [row_of(spec, hardware, ranks) for spec in specs]
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return page([row | {"seeds": n} for row, n in zip(rows, seeds, strict=True)], hardware, ranks)


def page(rows: list[dict[str, Any]], hardware: Hardware, ranks: int) -> str:
    """Sums over setups, the longest job, what fits nowhere. rows: of `row_of`, with how many seeds each has."""
    trainings = sum(row["seeds"] for row in rows)
    head = f"{'setup':26}{'runs':>5}{'micro':>7}{'expert':>7}{'GiB':>7}{'s/step':>9}{'hours':>9}{'GPU-hours':>11}"
    lines = [f"{trainings} trainings, each on {ranks} × {hardware.device}", "", f"{head}{'GB disk':>9}"]
    for setup in dict.fromkeys(row["setup"] for row in rows):
        some = [row for row in rows if row["setup"] == setup]
        fitting = [row for row in some if "hours" in row]
        line = f"{setup:26}{sum(row['seeds'] for row in some):5}"
        if fitting:
            slow = max(fitting, key=lambda row: row["hours"])
            line += f"{slow['micro_batch']:7}{slow['expert_ranks']:7}{slow['memory_gib']:7.1f}"
            line += f"{slow['seconds_a_step']:9.3g}{slow['hours']:9.3g}"
            line += f"{total(fitting, 'gpu_hours'):11.4g}{total(some, 'disk_gb'):9.4g}"
        else:
            line += "  steps not known yet" if "micro_batch" in some[0] else "  fits in no way"
        lines.append(line)
    fitting = [row for row in rows if "hours" in row]
    sums = f"{total(fitting, 'flops'):.3g} FLOPs, {total(fitting, 'gpu_hours'):,.4g} GPU-hours"
    lines += ["", f"In all {sums}, {total(rows, 'disk_gb'):,.4g} GB of checkpoints."]
    if fitting:
        longest = max(fitting, key=lambda row: row["hours"])
        lines.append(f"The longest job is {longest['run']}: {longest['hours']:.3g} hours.")
    lost = [row["run"] for row in rows if "micro_batch" not in row]
    if lost:
        lines.append(f"Not counted, since they fit in no way: {', '.join(lost)}.")
    later = sum("hours" not in row and "micro_batch" in row for row in rows)
    if later:
        lines.append(f"Not counted: {later} runs of fine-tuning, whose steps their instructions decide.")
    lines.append("Estimated (docs/scaling.md): columns of a setup are those of its longest run.")
    return "\n".join(lines)


def total(rows: list[dict[str, Any]], key: str) -> float:
    """Over all seeds."""
    return sum(row["seeds"] * row[key] for row in rows)


def scaling_table(tables: Any, machines: Iterable[str]) -> str:
    """A Markdown table: every setup of the tables' scale, by the first of its runs with experts, on these machines."""
    titles = ["micro-batch", "expert ranks", "GiB a GPU", "GB sent a step", "s a step", "hours"]
    lines = [f"| run | machine | {' | '.join(titles)} |", "|---" * 8 + "|"]
    first: dict[str, str] = {}
    for name, row in tables.runs.items():
        if row["router"] != DENSE and not row["base"] and row["experts"] <= 64:
            first.setdefault(row["setup"], name)
    for run in first.values():
        for machine in machines:
            hardware = tables.hardware_named(machine)
            row = row_of(tables.spec(run), hardware, hardware.ranks)
            cells = [str(row.get(key, "–")) for key in ("micro_batch", "expert_ranks")]
            cells += [
                f"{row[key]:.3g}" if key in row else "–"
                for key in ("memory_gib", "sent_gb_a_step", "seconds_a_step", "hours")
            ]
            lines.append(f"| {run} | {machine} | {' | '.join(cells)} |")
    return "\n".join(lines)


MACHINES = ("a100-8", "h100-8", "h100-2x8")
BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"


def with_table(page: str, table: str) -> str:
    """A page with the table between its marks renewed."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    from moe.table_files import load_yaml
    from moe.tables import Tables

    here = Path(__file__).parent.parent
    config = load_yaml(Path("config/config.yaml")) | {"scale": "paper"}
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(), scaling_table(Tables(config, here / "schemas"), MACHINES)))


if __name__ == "__main__":
    main()
