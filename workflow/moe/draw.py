"""Draw one row of config/figures.tsv: `python -m moe.draw '{"spec": …, "runs": …}' --scale … --output FILE …`."""

import argparse
import json
import sys
from pathlib import Path

from moe.command_line import exit_code
from moe.figures import draw


def main() -> int:
    """Command line; 2 and one sentence for an error of the user."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "row", type=json.loads, help="JSON: `spec`, the row, and `runs`, what it shows (moe.figures.draw)"
    )
    parser.add_argument("--scale", required=True, help="name of the scale, for the titles")
    parser.add_argument("--reported", type=Path, required=True, help="folder of the numbers that the papers printed")
    parser.add_argument("--results", type=Path, required=True, help="folder of the scale's results")
    parser.add_argument("--output", type=Path, nargs="+", required=True, help="files; their suffixes say what each is")
    given = parser.parse_args()
    places = {"scale": given.scale, "reported": given.reported, "results": given.results}
    return exit_code(lambda: draw(given.row["spec"], given.row["runs"], outputs=given.output, **places))


if __name__ == "__main__":
    sys.exit(main())
