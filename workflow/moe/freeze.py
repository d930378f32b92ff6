"""Write what decides a run, and the commit that it was frozen at: `python -m moe.freeze '{"run": …}' run.yaml`."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from moe.command_line import exit_code
from moe.matching import match
from moe.schedule import counted
from moe.tables import fingerprint


def commit() -> str | None:
    """The commit of this workflow, marked where files differ from it."""
    if not shutil.which("git"):
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None


def main() -> int:
    """Command line; 2 and one sentence for an error of the user."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=json.loads, help="JSON: the run, as merged from the tables")
    parser.add_argument("output", type=Path, help="run.yaml")
    parser.add_argument(
        "--matched", type=Path, nargs="*", help="run.yaml and metrics.csv of the run whose compute it has"
    )
    parser.add_argument("--instructions", type=Path, nargs="?", help="manifest.json of what it is fine-tuned on")
    given = parser.parse_args()

    def command() -> None:
        spec = given.spec | {"commit": commit()}
        if given.matched:
            other, metrics = given.matched
            spec = match(spec, yaml.safe_load(other.read_text()), metrics)
        if given.instructions:
            spec = counted(spec, given.instructions)
        spec["fingerprint"] = fingerprint(spec)
        given.output.write_text(yaml.safe_dump(spec, sort_keys=False))

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
