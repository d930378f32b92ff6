"""Documents to token files: stream, split by hash, encode on all cores, write, never holding the corpus.

Three stages run side by side: a thread reads and hashes documents, a thread encodes batches (the
library leaves the interpreter lock and uses every core), the caller writes the batch before.
"""

import platform
import shutil
from array import array
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from moe.data import tokenizer as tokenization
from moe.data.ahead import Ahead
from moe.data.definition import SPLITS

BATCH = 1 << 21  # characters encoded at once: an encoding takes ~100 bytes a token while it lives
PIECE = 1 << 16  # longer documents are encoded in pieces, cut before a space, so that all cores share them
AHEAD = 3  # batches read ahead
MOST_DOMAINS = 1 << 16
COUNTS = ("documents", "tokens", "bytes")


class Piece(NamedTuple):
    """A document or, where it is long, a part of it."""

    text: str
    split: str
    domain: int
    size: int  # bytes of text
    last: bool


def split_of(text, weights):
    """The split of a document, drawn by the hash of its text: a duplicate always lands in the same one.

    `weights` maps split to a whole number. Returns a key of `weights`.
    """
    draw = int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
    draw = draw * sum(weights.values()) >> 64
    for name, weight in weights.items():
        if draw < weight:
            return name
        draw -= weight
    raise AssertionError("weights sum to the range of the draw")


def pieces_of(text, longest=PIECE):
    """Cut a text before a space that follows no space, where byte-level BPE has a boundary anyway."""
    start = 0
    while len(text) - start > longest:
        stop = text.rfind(" ", start + longest // 2, start + longest)
        while stop > 0 and text[stop - 1].isspace():
            stop = text.rfind(" ", start + longest // 2, stop - 1)
        stop = stop if stop > start else start + longest
        yield text[start:stop]
        start = stop
    yield text[start:]


def batches_of(documents, weights, domains, *, limit_bytes=None):
    """Yield lists of Piece worth about BATCH characters; `domains` (list of str) grows as they appear."""
    index = {name: i for i, name in enumerate(domains)}
    batch, length, total = [], 0, 0
    for text, domain in documents:
        if not text:
            continue
        if domain not in index:
            if len(domains) == MOST_DOMAINS:
                raise ValueError(f"more than {MOST_DOMAINS} domains, the last {domain[:40]!r}: is it a label?")
            index[domain] = len(domains)
            domains.append(domain)
        split = split_of(text, weights)
        parts = list(pieces_of(text))
        for i, part in enumerate(parts):
            size = len(part) if part.isascii() else len(part.encode("utf-8"))
            batch.append(Piece(part, split, index[domain], size, i == len(parts) - 1))
            length += len(part)
            total += size
            if length >= BATCH:
                yield batch
                batch, length = [], 0
        if limit_bytes is not None and total >= limit_bytes:
            break
    if batch:
        yield batch


def write_tokens(documents, text, folder, *, weights, domains, limit_bytes=None):
    """Write the token, document and domain files of every split into `folder`.

    documents: iterable of (text, domain). text: tokenizer.Text. Returns (counts per split,
    counts per domain). Errors: ValueError for text that the tokenizer does not cover, no text.
    """
    vocabulary = tokenization.vocabulary_size(text)
    dtype = tokenization.token_type(vocabulary)
    encode = _byte_encoder() if vocabulary == 257 and text.end_of_text == 256 else _encoder(text)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_Writer(folder, name, dtype)) for name in SPLITS}
        reading = batches_of(documents, weights, domains, limit_bytes=limit_bytes)
        encoding = stack.enter_context(ThreadPoolExecutor(1))
        waiting = []
        for batch in stack.enter_context(Ahead(reading, AHEAD)):
            waiting.append((batch, encoding.submit(encode, batch)))
            if len(waiting) == 2:  # write one batch while the next is encoded
                _write(*waiting.pop(0), writers, text.end_of_text)
        for item in waiting:
            _write(*item, writers, text.end_of_text)
    counts = {name: dict(zip(COUNTS, writer.total(), strict=True)) for name, writer in writers.items()}
    per_domain = {
        domain: dict(zip(COUNTS, map(int, sum(w.counts[i] for w in writers.values())), strict=True))
        for i, domain in enumerate(domains)
    }
    return counts, per_domain


def _write(batch, encoded, writers, end_of_text):
    parts = {name: [] for name in writers}
    for piece, ids in zip(batch, encoded.result(), strict=True):
        parts[piece.split].append((piece, ids))
    for name, found in parts.items():
        writers[name].add(found, end_of_text)


def _byte_encoder():
    return lambda batch: [np.frombuffer(piece.text.encode("utf-8"), dtype=np.uint8) for piece in batch]


def _encoder(text):
    missing = tokenization.coverage(text)

    def encode(batch):
        texts = [piece.text for piece in batch]
        ids = text.encode_batch(texts)
        unknown = missing(texts, ids)
        if unknown is not None:
            raise ValueError(
                f"the tokenizer does not cover the corpus: it has no token for {unknown[:40]!r},"
                " choose a byte-level one"
            )
        return ids

    return encode


class _Writer:
    """Appends the documents of one split; starts and domains go to the disk as they come."""

    def __init__(self, folder, split, dtype):
        self.folder, self.split, self.dtype = folder, split, dtype
        self.counts = defaultdict(lambda: np.zeros(len(COUNTS), dtype=np.int64))  # by domain

    def __enter__(self):
        self.tokens = open(self.folder / f"{self.split}.tokens.bin", "wb")
        self.starts = open(self.folder / f"{self.split}.starts.raw", "wb")
        self.domains = open(self.folder / f"{self.split}.domains.raw", "wb")
        self.starts.write(np.int64(0).tobytes())
        self.written = 0
        return self

    def add(self, found, end_of_text):
        """Append a list of (Piece, ids): ids are a list of int, or bytes."""
        ids, starts, domains = array("I"), array("q"), array("H")
        for piece, of_piece in found:
            ids.extend(of_piece)
            if piece.last:
                ids.append(end_of_text)
                starts.append(self.written + len(ids))
                domains.append(piece.domain)
            self.counts[piece.domain] += (piece.last, len(of_piece) + piece.last, piece.size)
        self.written += len(ids)
        self.tokens.write(np.frombuffer(ids, np.uint32).astype(self.dtype).tobytes())
        self.starts.write(starts.tobytes())
        self.domains.write(domains.tobytes())

    def total(self):
        """Documents, tokens and bytes of the split."""
        return map(int, sum(self.counts.values(), np.zeros(len(COUNTS), dtype=np.int64)))

    def __exit__(self, *failure):
        for file in (self.tokens, self.starts, self.domains):
            file.close()
        if failure[0] is None:
            documents = next(self.total())
            for kind, name, dtype, length in (
                ("starts", "documents", "<i8", documents + 1),
                ("domains", "domains", "<u2", documents),
            ):
                raw = self.folder / f"{self.split}.{kind}.raw"
                _to_npy(raw, f"{self.split}.{name}.npy", dtype, length)


def _to_npy(raw, name, dtype, length):
    header = {"descr": dtype, "fortran_order": False, "shape": (length,)}
    with open(raw, "rb") as source, open(raw.with_name(name), "wb") as target:
        np.lib.format.write_array_header_1_0(target, header)
        shutil.copyfileobj(source, target, 1 << 20)
    raw.unlink()


def versions():
    """Versions of what decides the tokens."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tokenizers": tokenization.tokenizers.__version__,
    }
