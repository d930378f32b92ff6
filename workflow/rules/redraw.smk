# Pictures, tables and verdicts from what was published: one job, since no other has to be waited for.
rule redraw:
    """Every row of figures.tsv and claims.tsv, from the published files alone."""
    input:
        results=all_inputs,
        reported=reported_files(row["reported"] for row in tables.figures + tables.claims),
    output:
        [f"paper_figures/{SCALE}/{row['paper']}/{row['figure']}.{e}" for row in tables.figures for e in endings(row)],
        claims=expand("paper_figures/{scale}/claims.{ending}", scale=SCALE, ending=["md", "csv"]),
    log:
        f"results/logs/{SCALE}/redraw.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        figures=tables.figures,
        claims=tables.claims,
        runs=with_folders(ROWS),
        scale=SCALE,
        results=lambda wildcards: RESULTS,
        reported=lambda wildcards: str(REPORTED),
    script:
        "../scripts/redraw.py"
