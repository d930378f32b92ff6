"""Write what decides a run, and the commit that it was frozen at."""

import subprocess
from pathlib import Path

import yaml

git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
spec = snakemake.params.spec | {"commit": git.stdout.strip() or None}
Path(snakemake.output[0]).write_text(yaml.safe_dump(spec, sort_keys=False))
