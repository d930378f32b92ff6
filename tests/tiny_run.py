"""A run and a corpus small enough to check by hand: held in memory, or as the folders that commands read."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from moe.checkpoints import sha256
from moe.data import Corpus, make_local_tasks, prepare
from moe.data.tokenizer import byte_tokenizer
from moe.finished import FinishedRun
from moe.model import Decoder
from moe.routers import options_of
from moe.snapshots import router_state, save_snapshot

END_OF_TEXT, VOCABULARY, SEQUENCE = 256, 257, 16
SIZES = dict(width=32, layers=2, heads=4, kv_heads=2, expert_width=64, experts=4, top_k=1, init_std=0.2)
TEXTS = [  # (domain, text)
    (0, "the cat sat on the mat, and the dog sat on the cat"),
    (1, "def f(x):\n    return f(x) + f(x)\n"),
    (0, "où est le café? près de la forêt"),
    (1, "int main() { return main(); }"),
]


class TinyCorpus:
    """TEXTS as each split, every text followed by the end of text."""

    tokenizer, vocabulary, end_of_text = byte_tokenizer(), VOCABULARY, END_OF_TEXT
    folder, domains = Path("tiny-corpus"), ["prose", "code"]

    def __init__(self, texts=TEXTS):
        pieces = [[*text.encode(), END_OF_TEXT] for _, text in texts]
        self.flat = np.array([token for piece in pieces for token in piece], dtype=np.uint16)
        self.starts = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
        self.of = np.array([domain for domain, _ in texts], dtype=np.uint16)

    def tokens(self, split):
        return self.flat

    def documents(self, split):
        return self.starts, self.of


def tiny_model(router="topk", seed=0):
    """A random decoder that is sure enough of itself to have clear arguments of the maximum."""
    torch.manual_seed(seed)
    return Decoder(VOCABULARY, router=tiny_router(router), **SIZES).eval()


def tiny_router(name):
    """The router's name and options; segments that a tiny sequence has several of."""
    segments = {"segment": 4} if name != "none" and "segment" in options_of(name) else {}
    return {"name": name} | segments


class TinyRun(FinishedRun):
    """Two snapshots (of different random weights) of a run that was never trained."""

    def model(self, snapshot):
        return tiny_model(self.spec["model"]["router"]["name"], seed=len(snapshot))


def tiny_run(router="topk", corpus=None, **evaluation):
    """A run of this router, its spec's `evaluation` as given."""
    spec = {"run": "tiny", "seed": 1, "corpus": "local", "training": {"sequence": SEQUENCE}}
    spec |= {"model": {"router": {"name": router}}, "evaluation": evaluation}
    made = {"5B": {"step": 5, "tokens": 80}, "10B": {"step": 10, "tokens": 160}}
    corpus = corpus or TinyCorpus()
    cpu = torch.device("cpu")
    return TinyRun(Path("tiny"), spec, {"snapshots": made}, corpus, list(made), cpu)


WORDS = ["river", "stone", "bridge", "water", "garden", "letter", "window", "summer", "forest", "music"]


def write_corpus(folder):
    """A prepared corpus of made-up running text in two domains, with its local tasks."""
    draw, lines = np.random.default_rng(0), []
    for document in range(60):
        words = " ".join(draw.choice(WORDS, 300).tolist())
        lines.append(json.dumps({"text": f"{document} {words}.", "domain": "ab"[document % 2]}))
    source = folder.parent / "text"
    source.mkdir()
    (source / "text.jsonl").write_text("\n".join(lines) + "\n")
    files = {"kind": "files", "folder": str(source), "domain": "domain"}
    split = {"train": 1, "valid": 1, "test": 1}
    prepare({"source": files, "tokenizer": {"kind": "bytes"}, "split": split}, folder, workers=1)
    make_local_tasks(folder, count=8)
    return Corpus(folder)


def write_run(folder, corpus, router="rmoe"):
    """The folder of a run that ended with one snapshot of random weights."""
    (folder / "snapshots").mkdir(parents=True)
    model = tiny_model(router)
    spec = tiny_run(router).spec | {"evaluation": {"windows": 4, "probe_tokens": 64, "limit": 3}}
    spec["evaluation"]["tasks"] = {"local": ["local_last_word/acc", "local_cloze"], "benchmark": ["race/acc"]}
    spec["model"] = dict(vocabulary=VOCABULARY, router=tiny_router(router), **SIZES)
    (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    path = folder / "snapshots" / "5B.safetensors"
    tensors = {name: part for name, part in model.state_dict().items() if torch.is_tensor(part)}
    save_snapshot(tensors, path, router_state(model))
    made = {"file": "snapshots/5B.safetensors", "step": 5, "tokens": 80, "sha256": sha256(path)}
    done = {"data": corpus.fingerprint, "precision": "float32", "snapshots": {"5B": made}}
    (folder / "done.json").write_text(json.dumps(done))


def measured(module: str, folders: list[Path], corpora: Path, output: Path) -> list[dict[str, str]]:
    """Rows that a command of moe.benchmark writes of finished runs, in two rounds, in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, folders), "--rounds", "2"]
    command += ["--corpora", str(corpora), "--output", str(output)]
    # without what a process group of this process has left there
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    alone |= {"PYTHONPATH": str(Path(__file__).parent.parent / "workflow"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with output.open(newline="") as file:
        return list(csv.DictReader(file))
