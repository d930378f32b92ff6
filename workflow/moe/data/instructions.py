"""Instruction sets: a definition (config/instructions/*.yaml) -> token files of one corpus' tokenizer -> batches.

N: examples. An example is its prompt, its response and the end of text; the loss is on the latter two alone.
"""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import yaml

from moe.data import tokenizer as tokenization
from moe.data.alpaca import prompt_of, read_examples
from moe.data.corpus import Corpus
from moe.data.definition import check_revision, part_of
from moe.data.docstrings import docstring_examples
from moe.data.storage import read_json, sha256_of, whole_folder, write_json
from moe.data.windows import permute

FILES = ("tokens.npy", "starts.npy", "prompts.npy")
MANIFEST = "manifest.json"
COMMON = {"max_tokens": 512, "limit": None}
# kind -> (required keys, optional keys with defaults)
KINDS = {
    "hub": ({"name": str, "revision": str, "file": str}, COMMON),
    "file": ({"path": str}, COMMON),
    "docstrings": ({}, COMMON),
}


def load_instructions(path):
    """Read and check the YAML file of an instruction set; ValueError names the file and what is wrong in it."""
    path = Path(path)
    try:
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such definition of instructions") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    return check_instructions(definition, where=str(path))


def check_instructions(definition, *, where="instructions"):
    """The definition with every default filled in; ValueError in one sentence where it is wrong."""
    definition = part_of(definition, KINDS, where)
    if definition["kind"] == "hub":
        check_revision(definition["revision"], definition["name"], f"{where}: revision")
    for key, least in (("max_tokens", 2), ("limit", 1)):
        value = definition[key]
        if value is None and key == "limit":
            continue
        if type(value) is not int or value < least:
            raise ValueError(f"{where}: {key} is {value!r}, expected a whole number, {least} or more")
    return definition


def as_corpus(definition):
    """A hub definition of instructions in the form that `fetch` takes."""
    source = {"kind": "hub", "split": "train", "files": [definition["file"]]}
    source |= {key: definition[key] for key in ("name", "revision")}
    return {"source": source, "tokenizer": {"kind": "bytes"}}


def prepare_instructions(definition, corpus_folder, folder, *, fetched=None):
    """Write the instruction set of a checked definition in the tokens of a corpus; returns the manifest.

    An example longer than `max_tokens` is cut at the end (then it has no end of text), and left out where nothing of
    its response would remain; with `limit` the first so many that are neither cut nor left out are taken, in an order
    drawn by hash. Errors: ValueError in one sentence for malformed data.
    """
    corpus = Corpus(corpus_folder)
    examples = _examples(definition, corpus, fetched)
    encoded, counts = _encode(examples, corpus, definition["max_tokens"], definition["limit"])
    if not encoded:
        raise ValueError(f"{folder}: no instruction has a response within {definition['max_tokens']} tokens")
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in encoded)], dtype=np.int64)
    arrays = {
        "tokens.npy": np.concatenate([np.array(t, tokenization.token_type(corpus.vocabulary)) for t, _ in encoded]),
        "starts.npy": starts,
        "prompts.npy": np.array([prompt for _, prompt in encoded], dtype=np.int64),
    }
    with whole_folder(folder, may_replace=[*FILES, MANIFEST]) as partial:
        for name, array in arrays.items():
            np.save(partial / name, array, allow_pickle=False)
        files = {name: {"sha256": sha256_of(partial / name)} for name in FILES}
        manifest = {"definition": definition, "corpus": corpus.fingerprint, "examples": len(encoded)} | counts
        manifest |= {"tokens": int(starts[-1]), "answers": int(starts[-1] - arrays["prompts.npy"].sum())}
        digest = json.dumps({"corpus": corpus.fingerprint, "files": files}, sort_keys=True)
        manifest |= {"files": files, "fingerprint": sha256(digest.encode()).hexdigest()[:16]}
        write_json(partial / MANIFEST, manifest)
    return manifest


def _examples(definition, corpus, fetched):
    if definition["kind"] == "docstrings":
        return docstring_examples(corpus)
    if definition["kind"] == "file":
        return read_examples(definition["path"])
    from moe.data.prepare import verified_files

    return [example for file in verified_files(fetched, definition["name"]) for example in read_examples(file)]


def _encode(examples, corpus, most, limit):
    """([(token ids, tokens of the prompt)], counts of what was cut and left out)."""
    text, missing = corpus.tokenizer, tokenization.coverage(corpus.tokenizer)
    if limit is not None:  # drawn by hash, so that a limit takes no particular stretch of the file
        examples = sorted(examples, key=lambda e: sha256("\0".join(e).encode("utf-8", "replace")).digest())
    encoded, cut, left_out = [], 0, 0
    for example in examples:
        texts = [prompt_of(example), example.output]
        prompt, response = text.encode_batch(texts)
        unknown = missing(texts, [prompt, response])
        if unknown is not None:
            raise ValueError(f"the tokenizer of {corpus.folder} has no token for {unknown[:40]!r} of an instruction")
        tokens = [*prompt, *response, corpus.end_of_text]
        too_long = len(tokens) > most
        if len(prompt) >= most or (limit is not None and too_long):
            left_out += 1
            continue
        cut += too_long
        encoded.append((tokens[:most], len(prompt)))
        if len(encoded) == limit:
            break
    return encoded, {"cut": cut, "left_out": left_out}


class Instructions:
    """Opens a folder that `prepare_instructions` wrote; `at(step)` depends on (seed, step) alone.

    Every epoch visits each example once, in an order of its own. Errors: ValueError names a file that is missing or
    altered.
    """

    def __init__(self, folder, batch, seed):
        self.folder, self.batch, self.seed = Path(folder), batch, seed
        self.manifest = read_json(self.folder / MANIFEST)
        for name, facts in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file() or sha256_of(path) != facts["sha256"]:
                raise ValueError(f"{path}: is missing or altered: prepare the instructions again")
        self.tokens, self.starts, self.prompts = (np.load(self.folder / n, allow_pickle=False) for n in FILES)
        self.fingerprint, self.corpus = self.manifest["fingerprint"], self.manifest["corpus"]

    def __len__(self):
        return len(self.prompts)

    def at(self, step, rank=0, ranks=1):
        """Examples of a step, a list of (tokens int64 [n], tokens of the prompt); the ranks' parts make the batch."""
        if self.batch % ranks or not 0 <= rank < ranks:
            raise ValueError(f"batch {self.batch} is not divisible among rank {rank} of {ranks} ranks")
        share = self.batch // ranks
        chosen = self.order(step * self.batch + rank * share, share)
        spans = [slice(self.starts[i], self.starts[i + 1]) for i in chosen]
        return [(self.tokens[s].astype(np.int64), int(self.prompts[i])) for s, i in zip(spans, chosen, strict=True)]

    def order(self, first, count):
        """Indices of consecutive draws, counted over all epochs from 0."""
        epochs, places = np.divmod(np.arange(first, first + count), len(self))
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen[epochs == epoch] = permute(places[epochs == epoch], len(self), (self.seed, int(epoch)))
        return chosen

    def lengths(self, step):
        """Tokens that the model reads of each example of a step: all but the last one, which is only a target."""
        chosen = self.order(step * self.batch, self.batch)
        return (self.starts[chosen + 1] - self.starts[chosen] - 1).tolist()

    def answers(self, step):
        """Targets of a step that are in the loss."""
        chosen = self.order(step * self.batch, self.batch)
        return int((self.starts[chosen + 1] - self.starts[chosen] - self.prompts[chosen]).sum())

    def read(self, steps):
        """Tokens that the model reads in so many steps."""
        sizes = np.diff(self.starts) - 1
        epochs, rest = divmod(steps * self.batch, len(self))
        return int(epochs * sizes.sum() + sizes[self.order(epochs * len(self), rest)].sum())
