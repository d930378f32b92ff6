# Tables, their checks, and the few helpers that the rules share.
import json
import os
import sys
from glob import glob
from pathlib import Path

from filelock import FileLock, Timeout

WORKFLOW = Path(workflow.basedir) / "workflow"
sys.path.insert(0, str(WORKFLOW))
# Every job, script or shell, imports the local package as `moe`; only the fetching rules may use a network.
os.environ.update(PYTHONPATH=str(WORKFLOW), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="true")
# and `python` is the one that runs Snakemake, whether or not its environment is active
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))

from moe.claims import check_claims, files_judged, runs_judged
from moe.figures import check_figures, files_drawn, select
from moe.figures.inputs import files_of_metrics
from moe.publish import COMPRESSED, published_seeds
from moe.table_files import typed
from moe.tables import Tables

config.update(typed(config))
try:
    tables = Tables(dict(config), WORKFLOW / "schemas")
    ROWS, REPORTED = list(tables.runs.values()), tables.folder / "reported"
    if workflow.is_main_process:
        if config["results"] == "results":  # else nothing is trained, and what only a training needs may be absent
            tables.check_deeply()
        check_figures(tables.figures, ROWS, REPORTED)
        check_claims(tables.claims, ROWS, REPORTED, tables.figures)
    # What figures and claims read: the results of this folder, or those that were published with the project.
    PUBLISHED, SCALE = config["results"] == "published", tables.scale_name
    RESULTS = f"paper_figures/published/{SCALE}" if PUBLISHED else f"results/{SCALE}"
    SEEDS = {row["run"]: list(tables.seeds(row)) for row in ROWS}
    if PUBLISHED:  # of a run that was not, the first is missing
        SEEDS = dict.fromkeys(SEEDS, [0]) | published_seeds(Path(RESULTS))
except ValueError as error:
    sys.exit(f"error: {error}")

JUDGED, SHOWN = runs_judged(tables.claims, ROWS), [select(figure["runs"], ROWS) for figure in tables.figures]
USED = [run for run in ROWS if run in sum(SHOWN, JUDGED)]  # the other rows are trained when asked for by name
MIRROR = ["--mirror", str(Path(config["mirror"]).resolve())] if config["mirror"] else []
FETCHED = ["--fetched", "results/fetched/benchmarks"] if config["benchmarks"] == "fetch" else []


wildcard_constraints:
    scale=SCALE,
    run="|".join(tables.runs),
    seed="[0-9]+",
    device="cpu|gpu",
    corpus="|".join(tables.corpora),
    instructions="|".join(tables.instructions),
    paper="remoe|rmoe",
    figure="fig[a-z0-9-]+",
    table="(table|extra)[a-z0-9-]+",


def say_where_to_look():
    """What there is to open at this scale: of one paper, if the other was not asked for."""
    drawn = f"paper_figures/{SCALE}"
    looks = {"Verdicts": glob(f"{drawn}/claims*.md"), "Tables and figures": glob(f"{drawn}/*moe")}
    looks = {name: ", ".join(sorted(paths)) for name, paths in looks.items() if paths}
    looks |= {"All of it as one page": "snakemake --report report.html"} if looks else {}
    if os.path.isdir(f"results/{SCALE}/runs"):
        looks["Training curves"] = f"tensorboard --logdir results/{SCALE}/runs"
    print("", *(f"{name}: {what}" for name, what in looks.items()), "", sep="\n")


def hold_folder():
    """One workflow a folder. The lock ends with the process, so nothing stale is left after a kill."""
    global folder_lock
    Path(".snakemake").mkdir(exist_ok=True)
    folder_lock = FileLock(".snakemake/running.lock")
    try:
        folder_lock.acquire(timeout=0)
    except Timeout:
        sys.exit(f"error: another workflow is running in {Path.cwd()}; wait for it, or use another --directory")


def spec_of(wildcards):
    """What run.yaml will hold."""
    return tables.spec(wildcards.run, int(wildcards.seed))


def turn(wildcards):
    """Priority of a run's jobs: in the order of runs.tsv, so that the main comparisons can be looked at first."""
    return 10 * (len(ROWS) - list(tables.runs).index(wildcards.run))


def soon(wildcards):
    """Priority of what a finished run is asked: before the next one is trained."""
    return turn(wildcards) + 5


def matched_by(wildcards):
    """Files of the run whose compute this one is to match, if any."""
    other = tables.runs[wildcards.run]["matches"]
    folder = f"results/{SCALE}/runs/{other}/seed-{wildcards.seed}"
    return [f"{folder}/run.yaml", f"{folder}/metrics.csv"] if other else []


def corpus_of(wildcards):
    """Manifest of the corpus that the run is trained on."""
    return f"results/corpora/{tables.spec(wildcards.run)['corpus']}/manifest.json"


def tasks_of(wildcards):
    """Documents of the local tasks that the run is scored on."""
    spec = tables.spec(wildcards.run)
    names = [Path(task).parts[0] for task in spec["evaluation"]["tasks"].get("local", [])]
    return [f"results/corpora/{spec['corpus']}/tasks/{name}.jsonl" for name in names]


def fetched_for(wildcards):
    """What a corpus from the hub (or with a tokenizer from it) needs first; the others need nothing."""
    definition = tables.corpora[wildcards.corpus]
    hub = "hub" in (definition["source"]["kind"], definition["tokenizer"]["kind"])
    return [f"results/fetched/{wildcards.corpus}/manifest.json"] if hub else []


def with_folders(rows):
    """Rows of runs.tsv with where their results lie and which seeds count."""
    folders = [f"{RESULTS}/runs/{row['run']}" for row in rows]
    return [row | {"folder": f, "seeds": SEEDS[row["run"]]} for row, f in zip(rows, folders)]


def files_of(rows, *names):
    """Those files of every run and seed; large ones are published compressed."""
    names = [f"{name}.xz" if PUBLISHED and name in COMPRESSED else name for name in names]
    rows = with_folders(rows)
    return [f"{row['folder']}/seed-{seed}/{name}" for row in rows for seed in row["seeds"] for name in names]
