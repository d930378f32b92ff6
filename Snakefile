# Entry point. What is trained: config/runs.tsv. What is drawn: config/figures.tsv. What is judged: config/claims.tsv.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/place.smk"
include: "workflow/rules/asks.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: f"workflow/rules/{'redraw' if PUBLISHED else 'figures'}.smk"
include: "workflow/rules/benchmark.smk"


check_asked()
keep_group_together()


rule figures:
    """Every table, figure and verdict; with --config results=published those of the published results, untrained."""
    input:
        shown("remoe", "rmoe"),


rule all:
    default_target: True
    input:
        rules.figures.input,


rule remoe:
    input:
        shown("remoe"),


rule rmoe:
    input:
        shown("rmoe"),


onstart:
    hold_folder()
    take_off_pace()
    warm_up()


onsuccess:
    say_where_to_look()
