"""What a scale will cost."""

from pathlib import Path

from moe.expected import write

table = Path(snakemake.params.table)
table.parent.mkdir(parents=True, exist_ok=True)
given = snakemake.params
text = write(given.specs, given.seeds, given.hardware, given.ranks, table)
print(text, f"By run: {table}", sep="\n")
