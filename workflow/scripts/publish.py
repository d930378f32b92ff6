"""Figures, tables, verdicts and run records of a scale into paper_figures/published, verdicts into the README."""

from pathlib import Path

from moe.publish import publish

publish(
    drawn=Path(snakemake.input[0]).parent,
    runs=snakemake.params.runs,
    destination=Path(snakemake.params.destination),
    readme=Path(snakemake.params.readme) if snakemake.params.readme else None,
)
