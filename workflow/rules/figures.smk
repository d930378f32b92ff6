# Pictures, tables and verdicts, from the files of finished runs.
def figure_spec(wildcards):
    """Row of figures.tsv."""
    name = wildcards.get("figure") or wildcards.get("table")
    return next(f for f in tables.figures if (f["paper"], f["figure"]) == (wildcards.paper, name))


def rows_shown(wildcards):
    """The runs that figures.tsv selects for this figure."""
    return select(figure_spec(wildcards)["runs"], ROWS)


def files_of_scale(names):
    """Files of the whole scale. Speeds are optional: a table without them shows what the paper printed."""
    paths = [f"{RESULTS}/{name}" for name in names]
    made = [str(path) for rule in workflow.rules for path in rule.output]
    optional = lambda path: path.endswith("/speed.csv")
    known = lambda path: Path(path).exists() if PUBLISHED else any(map(optional, made))
    return [path for path in paths if not optional(path) or known(path)]


def figure_inputs(wildcards):
    """The files that this figure's kind and metrics read, of the runs that it shows."""
    of_seed, of_scale = files_drawn(figure_spec(wildcards))
    return files_of(rows_shown(wildcards), *of_seed) + files_of_scale(of_scale)


def claim_inputs(wildcards):
    """The files that each claim's metric reads, of the runs that it compares."""
    files = {}
    for claim in tables.claims:
        of_seed, of_scale = files_judged(claim)
        paths = files_of(runs_judged([claim], ROWS), *of_seed) + files_of_scale(of_scale)
        files |= dict.fromkeys(paths)
    return list(files)


def reported_files(stems):
    """The files of printed numbers that these cells of a table name."""
    return sorted({f"{REPORTED}/{stem}.csv" for cell in stems for stem in cell.split()})


def shown(paper):
    """Every figure and table of a paper that figures.tsv lists."""
    names = [f["figure"] for f in tables.figures if f["paper"] == paper]
    return [f"paper_figures/{SCALE}/{paper}/{name}{'.svg' if name.startswith('fig') else '.md'}" for name in names]


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
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=figure_spec,
        scale=SCALE,
        results=RESULTS,
        runs=lambda wildcards: with_folders(rows_shown(wildcards)),
        reported=str(REPORTED),
    script:
        "../scripts/draw_figure.py"


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
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=figure_spec,
        scale=SCALE,
        results=RESULTS,
        runs=lambda wildcards: with_folders(rows_shown(wildcards)),
        reported=str(REPORTED),
    script:
        "../scripts/draw_figure.py"


rule judge_claims:
    """Every claim of claims.tsv: what was reported, what was measured, the verdict."""
    input:
        results=claim_inputs,
        reported=reported_files(claim["reported"] for claim in tables.claims),
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
        reported=lambda wildcards: str(REPORTED),
        runs=with_folders(JUDGED),
    script:
        "../scripts/judge_claims.py"


rule publish:
    """Keep what this scale gave: figures, tables, verdicts and the runs' records, with their provenance."""
    input:
        claims=f"paper_figures/{SCALE}/claims.md",
        shown=shown("remoe") + shown("rmoe"),
        records=files_of(USED, *MEASURED),
    output:
        touch(f"results/{SCALE}/published"),
    log:
        f"results/logs/{SCALE}/publish.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        runs=with_folders(USED),
        destination=f"paper_figures/published/{SCALE}",
        readme=str(WORKFLOW.parent / "README.md") if SCALE == "laptop" else None,
    script:
        "../scripts/publish.py"
