"""Figures, tables, verdicts of a scale and what they are made from into paper_figures/published."""

from pathlib import Path

from moe.publish import publish

publish(
    drawn=Path(snakemake.input.claims).parent,
    results=Path(snakemake.params.results),
    files=sorted(map(Path, snakemake.input.files)),
    destination=Path(snakemake.params.destination),
    readme=Path(snakemake.params.readme) if snakemake.params.readme else None,
)
