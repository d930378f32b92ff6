"""Scores of every snapshot of a run on tasks of lm-eval, the language-model evaluation harness.

    python -m moe.evaluate RUN CORPUS --output scores.csv --samples samples.csv [--mirror FOLDER] [--fetched FOLDER]

The model is adapted to the harness (moe.harness); the local tasks are those of `workflow/tasks`, made from held-out
text; the benchmarks are the harness' own definitions, unchanged, on data that lies in a mirror or was fetched before.
"""

import math
import sys
import tempfile
from pathlib import Path

from moe.command_line import exit_code
from moe.finished import FinishedRun, open_run, parser_of, write_csv
from moe.harness import Rerouted, answers, load_tasks
from moe.tasks import Wanted, wanted_tasks

COLUMNS = ["run", "seed", "snapshot", "task", "metric", "value", "stderr", "documents", "shots", "source"]
SAMPLE_COLUMNS = ["snapshot", "task", "metric", "document", "value"]


def standard_error(metric: str, values: list[float], score: float) -> float | str:
    """Standard error of the mean over documents, of a perplexity exp(−mean) by the delta method; empty for one."""
    if len(values) < 2:
        return ""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values)) * (score if metric == "perplexity" else 1.0)


def evaluate(run: FinishedRun, wanted: list[Wanted], *, limit: int | None = None) -> tuple[list[dict], list[dict]]:
    """Rows of scores.csv and samples.csv; a sample's value is 0 or 1, or the log-probability behind a perplexity.

    Of a benchmark of several tasks each has a row, and the whole one more, the mean over all of their documents; of a
    task whose answers the harness reads in several ways (GSM8K) the first one, the strictest, counts.
    """
    scores, samples = [], []
    with tempfile.TemporaryDirectory(prefix="rerouted-") as folder:
        tasks = load_tasks(wanted, Path(folder))
        for snapshot in run.snapshots if tasks else []:
            results = answers(Rerouted.of_snapshot(run, snapshot), tasks, limit)
            pooled: dict[tuple, list[float]] = {}
            for task, metrics, source, _, group in wanted:
                reading, shots = tasks[task]._filters[0].name, tasks[task].config.num_fewshot
                documents = [d for d in results["samples"][task] if d.get("filter", reading) == reading]
                documents.sort(key=lambda d: d["doc_id"])
                for metric in dict.fromkeys(metrics or tasks[task].aggregation()):
                    value = float(results["results"][task][f"{metric},{reading}"])
                    values = [float(document[metric]) for document in documents]
                    scores.append(run.identity(snapshot) | _score(task, metric, value, values, shots, source))
                    pooled.setdefault((group, metric, shots, source), []).extend(values if group else ())
                    numbers = [document["doc_id"] for document in documents]
                    samples += [] if group else _samples(snapshot, task, metric, numbers, values)
            for (group, metric, shots, source), values in pooled.items():
                if group:
                    value = math.fsum(values) / len(values)
                    scores.append(run.identity(snapshot) | _score(group, metric, value, values, shots, source))
                    samples += _samples(snapshot, group, metric, range(len(values)), values)
    return scores, samples


def _score(task, metric, value, values, shots, source) -> dict:
    row = {"task": task, "metric": metric, "value": value, "stderr": standard_error(metric, values, value)}
    return row | {"documents": len(values), "shots": shots, "source": source}


def _samples(snapshot, task, metric, numbers, values) -> list[dict]:
    row = {"snapshot": snapshot, "task": task, "metric": metric}
    return [row | {"document": number, "value": value} for number, value in zip(numbers, values, strict=True)]


def main(arguments: list[str] | None = None) -> int:
    """Command line; 2 and one sentence for an error of the user."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="scores.csv")
    parser.add_argument("--samples", type=Path, help="samples.csv")
    parser.add_argument("--mirror", type=Path, help="a folder in the hub's layout")
    parser.add_argument("--fetched", type=Path, help="what moe.benchmarks downloaded")
    options = parser.parse_args(arguments)

    def command() -> None:
        run = open_run(options.run, options.corpus, snapshots=options.snapshot, device=options.device)
        asked = run.spec.get("evaluation", {})
        wanted = wanted_tasks(
            asked.get("tasks") or {},
            options.corpus,
            {"mirror": options.mirror, "hub": options.fetched},
            required=asked.get("required", False),
        )
        scores, samples = evaluate(run, wanted, limit=asked.get("limit"))
        if options.samples:
            write_csv(options.samples, SAMPLE_COLUMNS, samples)
        write_csv(options.output, COLUMNS, scores)
        for row in scores:
            print("{run} {snapshot}: {task} {metric} {value:.4f} ({documents} documents)".format(**row))

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
