"""A run and a corpus small enough to check by hand, held in memory."""

from pathlib import Path

import numpy as np
import torch

from moe.data.tokenizer import byte_tokenizer
from moe.finished import FinishedRun
from moe.model import Decoder

END_OF_TEXT, VOCABULARY, SEQUENCE = 256, 257, 16
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


def tiny_model(router="topk", seed=0, layers=2):
    """A random decoder that is sure enough of itself to have clear arguments of the maximum."""
    torch.manual_seed(seed)
    name = {"name": router}
    sizes = dict(width=32, layers=layers, heads=4, kv_heads=2, expert_width=64, init_std=0.2)
    experts = {} if router == "none" else dict(experts=4, top_k=1)
    return Decoder(VOCABULARY, router=name, **sizes, **experts).eval()


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
