"""A finished run, opened with the corpus that it was trained on: what validate, evaluate and probe share."""

import argparse
import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import nn

from moe.data import Corpus, Streams, held_out
from moe.devices import tokens_at_once
from moe.snapshots import load_model
from moe.wrong import did_you_mean

STREAMS = 8  # in which running text is read, for models that remember what came before (RMoE's small runs)


class FinishedRun(NamedTuple):
    """A run's folder, its frozen spec (run.yaml), what it left (done.json), its corpus, and the snapshots to read."""

    folder: Path
    spec: dict
    done: dict
    corpus: Corpus
    snapshots: list[str]
    device: torch.device

    @property
    def sequence(self) -> int:
        """Tokens of a training sequence: no router or position was ever trained on longer ones."""
        return self.spec["training"]["sequence"]

    @property
    def reads_streams(self) -> bool:
        """Whether it was trained on running text, block by block, rather than on windows that stand alone."""
        return self.spec["training"].get("streams", False)

    def identity(self, snapshot: str) -> dict:
        """The columns that every table starts with."""
        return {"run": self.spec["run"], "seed": self.spec["seed"], "snapshot": snapshot}

    def model(self, snapshot: str) -> nn.Module:
        """The model of one snapshot, in eval mode and in the precision of its training."""
        return load_model(self.folder, snapshot, self.device)[0]

    def windows(self, split: str, limit: int | None) -> Iterator[np.ndarray]:
        """Where the held-out windows lie: the places of their tokens in the split, int64 [sequence + 1] each."""
        return held_out(Places(self.corpus, split), split, self.sequence, limit)

    def blocks(self, split: str, limit: int | None) -> Iterator[np.ndarray]:
        """Where the blocks of 8 streams lie, step by step, int64 [8, sequence + 1]; at most `limit` blocks in all."""
        streams = Streams(Places(self.corpus, split), split, self.sequence, STREAMS)
        steps = len(streams) if limit is None else min(len(streams), max(1, limit // STREAMS))
        return map(streams.at, range(steps))

    def batch_tokens(self) -> int:
        """How many tokens one forward pass may have, padding included."""
        return tokens_at_once(self.device, self.corpus.vocabulary)

    def windows_per_batch(self) -> int:
        """How many windows of the training length one forward pass may have."""
        return max(1, self.batch_tokens() // self.sequence)


class Places:
    """A split whose token at each place is the place itself, so that `held_out` tells where its windows lie."""

    def __init__(self, corpus: Corpus, split: str):
        self.folder, self.length = corpus.folder, len(corpus.tokens(split))

    def tokens(self, split: str) -> "Places":
        return self

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return places


def open_run(
    folder: Path,
    corpus_folder: Path,
    *,
    snapshots: list[str] | None = None,
    device: str | None = None,
) -> FinishedRun:
    """Open the run in `folder`; `snapshots` names the ones to read, in the order of training (default: all).

    Raises ValueError where the run is not finished, lacks a snapshot, or was trained on another corpus.
    """
    folder = Path(folder)
    for name, remedy in (("run.yaml", "is this a run's folder"), ("done.json", "is it trained")):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} does not exist: {remedy}?")
    spec = yaml.safe_load((folder / "run.yaml").read_text())
    done = json.loads((folder / "done.json").read_text())
    corpus = Corpus(Path(corpus_folder))
    if done["data"] != corpus.fingerprint:
        raise ValueError(
            f"{folder / 'done.json'}: the run was trained on a corpus with fingerprint "
            f"{done['data']}, but {corpus_folder} has {corpus.fingerprint}"
        )
    known = sorted(done["snapshots"], key=lambda label: done["snapshots"][label]["step"])
    for label in snapshots or []:
        if label not in known:
            raise ValueError(f"{folder / 'done.json'}: no snapshot {label!r}{did_you_mean(label, known)}")
    labels = [label for label in known if not snapshots or label in snapshots]
    if not labels:
        raise ValueError(f"{folder / 'done.json'}: the run left no snapshot to read")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return FinishedRun(folder, spec, done, corpus, labels, torch.device(device))


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter (itertools has it from Python 3.12 on)."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def write_csv(path: Path, columns: list[str], rows: Iterable[dict]) -> None:
    """Write a table atomically: a reader finds the whole file or none."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def parser_of(description: str) -> argparse.ArgumentParser:
    """The arguments that every reader of a run takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("corpus", type=Path, help="folder of the corpus it was trained on")
    parser.add_argument("--snapshot", action="append", help="only this one (may be repeated)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    return parser
