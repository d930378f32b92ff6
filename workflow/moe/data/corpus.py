"""A prepared corpus: memory-mapped tokens, documents, domains and its tokenizer.

N: documents of a split. T: tokens of a split.
"""

from pathlib import Path

import numpy as np

from moe.data.definition import SPLITS
from moe.data.storage import read_json, sha256_of
from moe.data.tokenizer import load_tokenizer, token_type
from moe.wrong import did_you_mean

LAYOUT = 1  # of the files in the folder


class Corpus:
    """Opens a folder that `prepare` wrote. ValueError names a file that is missing, cut or altered.

    Opening compares sizes, which costs nothing; `verify()` compares checksums.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            near = [p.name for p in self.folder.parent.glob("*/")] if self.folder.parent.is_dir() else []
            hint = did_you_mean(self.folder.name, near)
            raise ValueError(f"{path}: no prepared corpus here{hint}")
        self.manifest = read_json(path)
        if not isinstance(self.manifest, dict) or self.manifest.get("layout") != LAYOUT:
            raise ValueError(f"{path}: not the manifest of a corpus of layout {LAYOUT}: prepare it again")
        for name, facts in self.manifest["files"].items():
            self._check_size(name, facts["bytes"])
        tokenizer = self.manifest["tokenizer"]
        self.vocabulary = tokenizer["vocabulary"]
        self.end_of_text = tokenizer["end_of_text"]
        self.fingerprint = self.manifest["fingerprint"]
        self.domains = self.manifest["domains"]
        self._tokenizer = None

    def tokens(self, split):
        """Token ids of a split: read-only memory map [T].

        Every document ends with `end_of_text`; a running text (byte values, words) is one document without an end.
        """
        path = self.folder / f"{self._split(split)}.tokens.bin"
        dtype = token_type(self.vocabulary)
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype)
        return np.memmap(path, dtype=dtype, mode="r")

    def documents(self, split):
        """(starts int64 [N+1], domains uint16 [N]): document i is tokens[starts[i]:starts[i+1]]."""
        split = self._split(split)
        arrays = []
        for name in (f"{split}.documents.npy", f"{split}.domains.npy"):
            try:
                arrays.append(np.load(self.folder / name, mmap_mode="r", allow_pickle=False))
            except (ValueError, EOFError) as error:
                raise ValueError(f"{self.folder / name}: damaged ({error}): prepare the corpus again") from None
        return tuple(arrays)

    @property
    def tokenizer(self):
        """tokenizer.Text with `encode`, `encode_batch` and `decode`."""
        if self._tokenizer is None:
            end_of_text = self.manifest["tokenizer"]["end_of_text_string"]
            self._tokenizer = load_tokenizer(self.folder / "tokenizer.json", end_of_text=end_of_text)
        return self._tokenizer

    def verify(self):
        """Compare the checksum of every file with the manifest; ValueError names the first that differs."""
        for name, facts in self.manifest["files"].items():
            self._check_size(name, facts["bytes"])
            found = sha256_of(self.folder / name)
            if found != facts["sha256"]:
                raise ValueError(
                    f"{self.folder / name}: altered (sha256 {found[:12]}…, the manifest says"
                    f" {facts['sha256'][:12]}…): prepare the corpus again"
                )

    def _check_size(self, name, size):
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"{path}: missing from the prepared corpus: prepare it again")
        found = path.stat().st_size
        if found != size:
            raise ValueError(
                f"{path}: {found} bytes, the manifest says {size}: the prepared corpus is damaged, prepare it again"
            )

    def _split(self, split):
        if split not in SPLITS:
            raise ValueError(f"{self.folder}: no split {split!r}{did_you_mean(split, SPLITS)}")
        return split
