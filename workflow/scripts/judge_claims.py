"""The claims page."""

from pathlib import Path

from moe.claims import judge

judge(
    snakemake.params.claims,
    snakemake.params.runs,
    scale=snakemake.wildcards.scale,
    reported=Path(snakemake.params.reported),
    outputs=list(snakemake.output),
)
