"""Backbones at the papers' size and at this scale, the gate functions and a routing of a few tokens, as CSV."""

import pandas as pd

from moe.describe import backbone, gate_functions, recurrent_example, routing_example

rows = []
for setup, shapes in snakemake.params.setups.items():
    for where, scale in (("paper_scale", "paper"), ("this_scale", snakemake.wildcards.scale)):
        found = backbone(shapes[where]["model"], shapes[where]["sequence"])
        rows.append({"paper": shapes["paper"], "setup": setup, "size": shapes["size"], "scale_of_row": scale} | found)
pd.DataFrame(rows).drop_duplicates(["setup", "scale_of_row"]).to_csv(snakemake.output.backbones, index=False)
pd.DataFrame(gate_functions()).to_csv(snakemake.output.gates, index=False)
pd.DataFrame(routing_example()).to_csv(snakemake.output.example, index=False)
pd.DataFrame(recurrent_example()).to_csv(snakemake.output.recurrent, index=False)
