# Pictures, tables and verdicts, from the files of finished runs.
DRAW = (
    "python -m moe.launch 1 moe.draw {params.row:q} --scale {wildcards.scale} --reported {params.reported:q}"
    " --results {params.results} --output {output} &> {log}"
)


rule draw_figure:
    """One row of figures.tsv as a picture, beside the numbers that it draws."""
    input:
        results=figure_inputs,
        reported=lambda wildcards: reported_files([figure_spec(wildcards)["reported"]]),
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
    priority: 10_000  # cheap, and what people wait for
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=figure_spec,  # for the report's caption
        row=row_drawn,
        results=lambda wildcards: RESULTS,
        reported=str(REPORTED),
    shell:
        DRAW


rule draw_table:
    """One row of figures.tsv as a table: CSV, Markdown and LaTeX."""
    input:
        results=figure_inputs,
        reported=lambda wildcards: reported_files([figure_spec(wildcards)["reported"]]),
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
    priority: 10_000  # cheap, and what people wait for
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=figure_spec,  # for the report's caption
        row=row_drawn,
        results=lambda wildcards: RESULTS,
        reported=str(REPORTED),
    shell:
        DRAW


rule judge_claims:
    """Every claim of claims.tsv: what was reported, what was measured, the verdict."""
    input:
        results=claim_inputs,
        reported=lambda wildcards: reported_files(claim["reported"] for claim in claims_of(wildcards)),
    output:
        md=report("paper_figures/{scale}/claims.md", caption="../report/claims.rst", category="claims"),
        csv="paper_figures/{scale}/claims.csv",
    log:
        "results/logs/{scale}/judge_claims.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        claims=claims_of,
        scale=SCALE,
        reported=lambda wildcards: str(REPORTED),
        runs=rows_judged,
    script:
        "../scripts/judge_claims.py"


use rule judge_claims as judge_paper with:
    output:
        md="paper_figures/{scale}/claims-{paper}.md",
        csv="paper_figures/{scale}/claims-{paper}.csv",
    log:
        "results/logs/{scale}/judge_claims-{paper}.log",


rule publish:
    """Keep what this scale gave: figures, tables, verdicts and the files that they are made from, with provenance."""
    input:
        claims=f"paper_figures/{SCALE}/claims.md",
        shown=shown("remoe", "rmoe"),
        files=published_files,
    output:
        touch(f"results/{SCALE}/published"),
    log:
        f"results/logs/{SCALE}/publish.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        results=lambda wildcards: RESULTS,
        destination=f"paper_figures/published/{SCALE}",
        readme=str(WORKFLOW.parent / "README.md") if SCALE == "laptop" else None,
    script:
        "../scripts/publish.py"
