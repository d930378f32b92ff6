"""One row of figures.tsv as a picture or a table."""

from pathlib import Path

from moe.figures import draw

draw(
    snakemake.params.spec,
    snakemake.params.runs,
    scale=snakemake.wildcards.scale,
    reported=Path(snakemake.params.reported),
    results=Path(snakemake.params.results),
    outputs=list(snakemake.output),
)
