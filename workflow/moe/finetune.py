"""Fine-tune a finished run on instructions: `python -m moe.finetune results/…/run.yaml --base … --instructions …`.

RMoE, section 4.2: Alpaca's form, the loss on the response and its end alone, with parts of the routing frozen. All else
is as in `moe.train`: checkpoints, exact resume, exit code 75, the record and what a finished run leaves.
Letters: B examples of a micro-batch, S its longest example less one.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe.data import Corpus, Instructions
from moe.model import IGNORED
from moe.snapshots import load_model
from moe.train import parser_of_training, run_training
from moe.training import Micro, Training

# variant -> whether a parameter below `router.` is frozen, by its name there. Whether the paper counts the projectors
# to the router or to the cell is not said: here to the router. (What a router keeps besides, such as λ, moves on.)
FROZEN = {
    "nothing": lambda name: False,
    "router": lambda name: not name.startswith("memory.cell."),
    "router and cell": lambda name: True,
}


class FineTuning(Training):
    """Training whose weights begin as a snapshot of another run, and whose batches are instructions.

    base: folder of the run to start from; instructions: a prepared set in the tokens of the same corpus.
    Raises ValueError where they do not go together.
    """

    def __init__(self, spec: dict[str, Any], folder: Path, corpus: Corpus, precision: str, *, base, instructions):
        self.base, self.at = Path(base), spec["finetune"]["at"]
        self.examples = Instructions(instructions, spec["training"]["batch"], spec["seed"])
        if self.examples.corpus != corpus.fingerprint:
            raise ValueError(
                f"{instructions}: is in the tokens of a corpus with fingerprint {self.examples.corpus}, but "
                f"{corpus.folder} has {corpus.fingerprint}"
            )
        super().__init__(spec, folder, corpus, precision)

    def _data_fingerprint(self) -> str:
        parts = [self.corpus.fingerprint, self.examples.fingerprint, self._origin()["base"]["sha256"]]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def _origin(self) -> dict[str, Any]:
        done = json.loads((self.base / "done.json").read_text())
        if self.at not in done["snapshots"]:
            raise ValueError(f"{self.base}: there is no snapshot {self.at!r}, only {', '.join(done['snapshots'])}")
        base = {"run": done.get("run"), "snapshot": self.at, "sha256": done["snapshots"][self.at]["sha256"]}
        return {"base": base, "instructions": self.examples.fingerprint}

    def _model(self) -> nn.Module:
        model, spec = load_model(self.base, self.at)
        if spec["model"] != self.spec["model"]:
            raise ValueError(f"{self.folder / 'run.yaml'}: its model is not that of {self.base / 'run.yaml'}")
        freeze(model, self.spec["finetune"]["frozen"])
        return model

    def _batches(self) -> Instructions:
        return self.examples

    def _micro_batches(self, step: int) -> Iterator[Micro]:
        examples = self.examples.at(step, self.rank, self.ranks)
        share = self.settings["batch"] / self.micro_batch / self.examples.answers(step)
        for start in range(0, len(examples), self.micro_batch):
            some = examples[start : start + self.micro_batch]
            inputs_BS, targets_BS, real_BS = (part.to(self.device) for part in padded(some))
            answers = sum(len(tokens) - prompt for tokens, prompt in some)
            # the mean over micro-batches and ranks is then the mean over all responses' tokens, however they are split
            yield Micro(inputs_BS, targets_BS, {"real_BS": real_BS}, answers * share)

    def _lengths(self, step: int) -> list[int]:
        return self.examples.lengths(step)

    def _tokens(self, steps: int) -> int:
        return self.examples.read(steps)


def freeze(model: nn.Module, variant: str) -> None:
    """Take the gradient from the parameters that a variant of FROZEN leaves as they are."""
    for name, parameter in model.named_parameters():
        if name.startswith("router.") and FROZEN[variant](name.removeprefix("router.")):
            parameter.requires_grad_(False)


def padded(examples: list[tuple[Any, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and which inputs are real, each [B, S], of (tokens, how many are the prompt).

    The target of a position is the next token where that belongs to the response or is its end, else IGNORED.
    """
    longest = max(len(tokens) for tokens, _ in examples) - 1
    inputs_BS = torch.zeros(len(examples), longest, dtype=torch.long)
    targets_BS = torch.full_like(inputs_BS, IGNORED)
    real_BS = torch.zeros_like(inputs_BS, dtype=torch.bool)
    for row, (tokens, prompt) in enumerate(examples):
        tokens = torch.as_tensor(tokens)
        inputs_BS[row, : len(tokens) - 1] = tokens[:-1]
        targets_BS[row, prompt - 1 : len(tokens) - 1] = tokens[prompt:]
        real_BS[row, : len(tokens) - 1] = True
    return inputs_BS, targets_BS, real_BS


def main() -> None:
    parser = parser_of_training(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the finished run to start from")
    parser.add_argument("--instructions", type=Path, required=True, help="folder of the prepared instruction set")
    given = parser.parse_args()
    run_training(given, partial(FineTuning, base=given.base, instructions=given.instructions))


if __name__ == "__main__":
    main()
