"""Everything that figures.tsv and claims.tsv say, in one process."""

from pathlib import Path

from moe.claims import judge
from moe.figures import draw, select

given, reported = snakemake.params, Path(snakemake.params.reported)
for row in given.figures:
    name = f"{row['paper']}/{row['figure']}."
    draw(
        row,
        select(row["runs"], given.runs),
        scale=given.scale,
        reported=reported,
        results=Path(given.results),
        outputs=[path for path in snakemake.output if name in path],
    )
judge(given.claims, given.runs, scale=given.scale, reported=reported, outputs=snakemake.output.claims)
