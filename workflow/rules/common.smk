# Tables, their checks, and the few helpers that the rules share.
import os
import sys
from glob import glob
from pathlib import Path

WORKFLOW = Path(workflow.basedir) / "workflow"
sys.path.insert(0, str(WORKFLOW))
# Every job, script or shell, imports the local package as `moe`; only the fetching rules may use a network.
os.environ.update(PYTHONPATH=str(WORKFLOW), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="true")

from moe.claims import check_claims, runs_judged
from moe.figures import check_figures, select
from moe.tables import Tables

try:
    tables = Tables(dict(config), WORKFLOW / "schemas")
    if workflow.is_main_process:
        tables.check_routers()
    rows, reported = list(tables.runs.values()), tables.folder / "reported"
    check_figures(tables.figures, rows, reported)
    check_claims(tables.claims, rows, reported, tables.figures)
except ValueError as error:
    sys.exit(f"error: {error}")

SCALE = tables.scale_name
RUN = "results/{scale}/runs/{run}/seed-{seed}"
CORPUS = "results/corpora/{corpus}"
GPUS = len(glob("/dev/nvidia[0-9]*"))
WHERE_TO_LOOK = f"""
Verdicts: paper_figures/{SCALE}/claims.md
Tables and figures: paper_figures/{SCALE}/remoe, paper_figures/{SCALE}/rmoe
All of it as one page: snakemake --report report.html
Training curves: tensorboard --logdir results/{SCALE}/runs
"""


wildcard_constraints:
    scale=SCALE,
    run="|".join(tables.runs),
    seed="[0-9]+",
    corpus="|".join(tables.corpora),
    paper="remoe|rmoe",
    figure="fig[0-9]+[a-z]?",
    table="table[0-9]+",


def spec_of(wildcards):
    """What run.yaml will hold."""
    return tables.spec(wildcards.run, int(wildcards.seed))


def corpus_of(wildcards):
    """Manifest of the corpus that the run is trained on."""
    return CORPUS.format(corpus=tables.spec(wildcards.run)["corpus"]) + "/manifest.json"


def figure_spec(wildcards):
    """Row of figures.tsv."""
    name = wildcards.get("figure") or wildcards.get("table")
    return next(f for f in tables.figures if (f["paper"], f["figure"]) == (wildcards.paper, name))


def with_folders(rows):
    """Rows of runs.tsv with where their results lie and which seeds count."""
    folders = [f"results/{SCALE}/runs/{row['run']}" for row in rows]
    return [row | {"folder": f, "seeds": list(tables.seeds)} for row, f in zip(rows, folders)]


def runs_shown(wildcards):
    """The runs that figures.tsv selects for this figure."""
    return with_folders(select(figure_spec(wildcards)["runs"], list(tables.runs.values())))


def files_of(rows, *names):
    """Those files of every run and seed."""
    return [f"{row['folder']}/seed-{seed}/{name}" for row in rows for seed in tables.seeds for name in names]


def shown(paper):
    """Every figure and table of a paper that figures.tsv lists."""
    names = [f["figure"] for f in tables.figures if f["paper"] == paper]
    endings = [".md" if name.startswith("table") else ".svg" for name in names]
    return [f"paper_figures/{SCALE}/{paper}/{name}{ending}" for name, ending in zip(names, endings)]


def probed():
    """The routing record of every run."""
    return files_of(with_folders(tables.runs.values()), "routing.parquet")
