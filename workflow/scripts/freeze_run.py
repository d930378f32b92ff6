"""Write what decides a run, and the commit of the workflow that it was frozen at."""

import shutil
import subprocess
from pathlib import Path

import yaml

from moe.matching import match
from moe.schedule import counted
from moe.tables import fingerprint

commit = None
if shutil.which("git"):
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
spec = snakemake.params.spec | {"commit": commit or None}
if snakemake.input.matched:
    other, metrics = map(Path, snakemake.input.matched)
    spec = match(spec, yaml.safe_load(other.read_text()), metrics)
for manifest in snakemake.input.instructions:
    spec = counted(spec, Path(manifest))
spec |= {"fingerprint": fingerprint(spec)}
Path(snakemake.output[0]).write_text(yaml.safe_dump(spec, sort_keys=False))
