"""Pretrain one run: `python -m moe.train results/…/run.yaml --corpus results/corpora/…`.

Stops at SIGTERM or SIGUSR1 with a checkpoint and exit code 75; the same command goes on from the newest whole one.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml

from moe.command_line import Tee, exit_code
from moe.data import Corpus
from moe.launch import AGAIN
from moe.ranks import end_rank
from moe.resume import Refused
from moe.training import Stopped, Training


def parser_of_training(description: str) -> argparse.ArgumentParser:
    """The arguments of every training."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help="run.yaml of a run; everything is written beside it")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the prepared corpus")
    parser.add_argument("--log", type=Path, help="a file for what is printed, besides the terminal")
    told = "precision.json that measured the faster one on this machine"
    parser.add_argument("--precision", type=Path, nargs="?", help=told)
    return parser


def run_training(
    arguments: argparse.Namespace, make: Callable[[dict[str, Any], Path, Corpus, str], Training]
) -> NoReturn:
    """Make the training of these arguments from its run.yaml, run it, and end the process with its exit code."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about calls that DeepSpeed makes
    if arguments.log:
        sys.stderr = Tee(arguments.log)

    def train() -> None:
        spec = yaml.safe_load(arguments.run.read_text())
        precision = spec["training"].get("precision", "auto")
        if precision == "auto" and torch.cuda.is_available():
            precision = "bfloat16"  # as in both papers; what was measured may be another node's CPU
        elif precision == "auto":
            precision = json.loads(arguments.precision.read_text())["precision"] if arguments.precision else "float32"
        make(spec, arguments.run.parent, Corpus(arguments.corpus), precision).run()

    try:
        code = exit_code(train)
    except Stopped:
        code = AGAIN
    except Refused:
        code = 2
    end_rank(code)


def main() -> None:
    run_training(parser_of_training(__doc__).parse_args(), Training)


if __name__ == "__main__":
    main()
