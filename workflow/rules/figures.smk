# Pictures, tables and verdicts, from the files of finished runs.
MEASURED = ["done.json", "metrics.csv", "validation.csv", "validation_windows.csv", "scores.csv", "samples.csv"]


def figure_inputs(wildcards):
    """Files of the shown runs, or of no run at all."""
    rows = runs_shown(wildcards)
    return (
        files_of(rows, *MEASURED) if rows else [f"results/{SCALE}/backbones.csv", f"results/{SCALE}/gate_functions.csv"]
    )


def reported_files(wildcards):
    """The printed numbers that a figure is compared with."""
    return [f"{tables.folder}/reported/{stem}.csv" for stem in figure_spec(wildcards)["reported"].split()]


rule draw_figure:
    """One row of figures.tsv as a picture, beside the numbers that it draws."""
    input:
        results=figure_inputs,
        reported=reported_files,
    output:
        svg=report(
            "paper_figures/{scale}/{paper}/{figure}.svg",
            caption="../report/figure.rst",
            category="{paper}",
            labels={"figure": "{figure}"},
        ),
        png="paper_figures/{scale}/{paper}/{figure}.png",
        csv="paper_figures/{scale}/{paper}/{figure}.csv",
    log:
        "results/logs/{scale}/draw_figure/{paper}-{figure}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=figure_spec,
        scale=SCALE,
        runs=runs_shown,
        reported=str(tables.folder / "reported"),
    script:
        "../scripts/draw_figure.py"


rule draw_table:
    """One row of figures.tsv as a table: CSV, Markdown and LaTeX."""
    input:
        results=figure_inputs,
        reported=reported_files,
    output:
        md=report(
            "paper_figures/{scale}/{paper}/{table}.md",
            caption="../report/figure.rst",
            category="{paper}",
            labels={"figure": "{table}"},
        ),
        csv="paper_figures/{scale}/{paper}/{table}.csv",
        tex="paper_figures/{scale}/{paper}/{table}.tex",
    log:
        "results/logs/{scale}/draw_table/{paper}-{table}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=figure_spec,
        scale=SCALE,
        runs=runs_shown,
        reported=str(tables.folder / "reported"),
    script:
        "../scripts/draw_figure.py"


rule judge_claims:
    """Every claim of claims.tsv: what was reported, what was measured, the verdict."""
    input:
        files_of(with_folders(runs_judged(tables.claims, list(tables.runs.values()))), *MEASURED),
    output:
        md=report("paper_figures/{scale}/claims.md", caption="../report/claims.rst", category="claims"),
        csv="paper_figures/{scale}/claims.csv",
    log:
        "results/logs/{scale}/judge_claims.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        claims=tables.claims,
        scale=SCALE,
        reported=str(tables.folder / "reported"),
        runs=with_folders(runs_judged(tables.claims, list(tables.runs.values()))),
    script:
        "../scripts/judge_claims.py"


rule publish:
    """Keep what this scale gave: figures, tables, verdicts and the runs' records, with their provenance."""
    input:
        f"paper_figures/{SCALE}/claims.md",
        shown("remoe"),
        shown("rmoe"),
    output:
        touch(f"results/{SCALE}/published"),
    log:
        f"results/logs/{SCALE}/publish.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        runs=with_folders(tables.runs.values()),
        destination=f"paper_figures/published/{SCALE}",
        readme=str(WORKFLOW.parent / "README.md"),
    script:
        "../scripts/publish.py"
