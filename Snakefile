# Entry point. What is trained: config/runs.tsv. What is drawn: config/figures.tsv. What is judged: config/claims.tsv.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/benchmark.smk"


rule all:
    default_target: True
    input:
        shown("remoe"),
        shown("rmoe"),
        files_of(USED, "routing.parquet"),
        f"paper_figures/{SCALE}/claims.md",


rule remoe:
    input:
        shown("remoe"),
        f"paper_figures/{SCALE}/claims.md",


rule rmoe:
    input:
        shown("rmoe"),
        f"paper_figures/{SCALE}/claims.md",


onstart:
    hold_folder()


onsuccess:
    print(WHERE_TO_LOOK)
