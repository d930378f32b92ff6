"""A corpus definition to a prepared folder: gather documents, choose the tokenizer, write, describe."""

import errno
import json
import os
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path

from moe.data import local, running, sources, tokens
from moe.data import tokenizer as tokenization
from moe.data.corpus import LAYOUT, Corpus
from moe.data.definition import SPLITS, check
from moe.data.storage import check_room, read_json, sha256_of, whole_folder, write_json

FILES = [f"{split}.{name}" for split in SPLITS for name in ("tokens.bin", "documents.npy", "domains.npy")]
BYTES_A_TOKEN = 2.5  # of text, at worst, for a BPE: only to estimate the room on the disk
COMPRESSION = 4  # text bytes per byte of a compressed file, likewise


@dataclass
class Documents:
    """Text files with what is needed to read them, in the order in which they are read."""

    files: list
    text: str = "text"
    domain: str | None = None
    limit_bytes: int | None = None
    domains: list = field(default_factory=list)
    root: Path | None = None  # below which a split's patterns name files
    as_is: bool = False  # one file whose bytes are the text

    def __iter__(self):
        return chain.from_iterable(map(self.read, self.files))

    def read(self, file):
        return sources.read_documents(file, text=self.text, domain=self.domain)

    def bytes(self):
        """Estimate of the text's size."""
        sizes = [p.stat().st_size * (1 if p.suffix in (".txt", ".jsonl") else COMPRESSION) for p in self.files]
        return min(sum(sizes), self.limit_bytes or sum(sizes))


def prepare(definition, folder, *, fetched=None, workers=None):
    """Write the prepared corpus of `definition` (a dict, see `definition.check`) to `folder`.

    fetched: folder that `fetch` wrote, for source or tokenizer of kind `hub`. workers: processes and
    threads (default: every core). The folder appears whole or not at all, and is the same for the
    same text on every machine. No network. Errors: ValueError in one sentence, for any bad input.
    """
    definition = check(definition)
    workers = workers or len(os.sched_getaffinity(0))
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ.setdefault("RAYON_NUM_THREADS", str(workers))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    replaceable = {*FILES, "manifest.json", "tokenizer.json", "tasks"}
    try:
        with whole_folder(folder, may_replace=replaceable) as partial:
            documents = open_source(definition["source"], partial, fetched=fetched, workers=workers)
            if "kind" in definition["split"]:
                text, counts = running.write_running(definition, documents, partial)
                documents.domains = [sources.NO_DOMAIN]
                sums = {key: sum(count[key] for count in counts.values()) for key in tokens.COUNTS}
                per_domain = {sources.NO_DOMAIN: sums}
            else:
                text, counts, per_domain = _write_documents(definition, documents, partial, fetched)
                _check_counts(counts, definition["split"], folder)
            for file in documents.files:
                if partial in file.parents:  # the gathered local texts
                    file.unlink()
            _describe(definition, partial, text, counts, per_domain, documents.domains)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ValueError(f"{folder}: the disk is full: make room and run again") from None
        raise
    Corpus(folder)  # opens


def _write_documents(definition, documents, folder, fetched):
    """Documents split by their hash: (tokenizer.Text, counts by split, counts by domain)."""
    text = open_tokenizer(definition, documents, fetched=fetched)
    width = tokenization.token_type(tokenization.vocabulary_size(text)).itemsize
    per_token = 1 if definition["tokenizer"]["kind"] == "bytes" else BYTES_A_TOKEN
    check_room(folder, documents.bytes() / per_token * width, "the prepared corpus")
    split, domains, limit = definition["split"], documents.domains, documents.limit_bytes
    counts, per_domain = tokens.write_tokens(documents, text, folder, weights=split, domains=domains, limit_bytes=limit)
    return text, counts, per_domain


def open_source(source, scratch, *, fetched=None, workers=1):
    """Documents of a checked `source`; the local corpus is gathered into one file in `scratch`."""
    if source["kind"] == "local":
        file = scratch / "documents.jsonl"
        found = local.collect(domains=source["domains"], limit_mb=source["limit_mb"], workers=workers)
        with open(file, "w", encoding="utf-8") as out:
            for text, domain in found:
                out.write(json.dumps({"text": text, "domain": domain}) + "\n")
        names = list(source["domains"] or local.LOCAL_DOMAINS)
        return Documents([file], domain="domain", domains=names)
    if source["kind"] == "file":
        return Documents([running.one_file(source["path"])], as_is=True)
    if source["kind"] == "files":
        files = sources.list_files(source["folder"], patterns=source["patterns"])
        return Documents(files, source["text"], source["domain"], root=Path(source["folder"]).expanduser())
    files, root = verified_files(fetched, source["name"]), Path(fetched or "") / "files"
    return Documents(files, source["text"], source["domain"], source["limit_bytes"], root=root)


def verified_files(fetched, name):
    """The fetched files in order, each compared with its recorded checksum."""
    if fetched is None:
        raise ValueError(f"{name} comes from the hub: fetch it first and give the folder of what was fetched")
    manifest = read_json(Path(fetched) / "manifest.json")
    files = []
    for path, facts in manifest["files"].items():
        file = Path(fetched) / "files" / path
        _check_fetched(file, facts)
        files.append(file)
    return files


def open_tokenizer(definition, documents, *, fetched=None):
    """tokenizer.Text of a checked definition; a BPE, or words, are of training documents only."""
    options = definition["tokenizer"]
    if options["kind"] == "bytes":
        return tokenization.byte_tokenizer()
    if options["kind"] in ("bpe", "words"):
        sample = sample_documents(documents, definition["split"], int(options["sample_mb"] * 1_000_000))
        train = {"bpe": tokenization.train_bpe, "words": tokenization.train_words}[options["kind"]]
        return train(sample, vocabulary=options["vocabulary"])
    if options["kind"] == "file":
        return tokenization.load_tokenizer(options["path"], end_of_text=options["end_of_text"])
    if fetched is None:
        raise ValueError(f"tokenizer {options['name']} comes from the hub: fetch it first")
    facts = read_json(Path(fetched) / "manifest.json").get("tokenizer")
    if not facts:
        raise ValueError(f"{fetched}: holds no tokenizer {options['name']}: fetch it first")
    file = Path(fetched) / "tokenizer" / facts["path"]
    _check_fetched(file, facts)
    return tokenization.load_tokenizer(file, end_of_text=options["end_of_text"])


def sample_documents(documents, weights, size):
    """Yield training texts worth `size` bytes, the same share of every file, so every domain counts."""
    share = size // len(documents.files)
    for file in documents.files:
        room = share
        for text, _ in documents.read(file):
            if text and tokens.split_of(text, weights) == "train":
                yield from tokens.pieces_of(text[:room])
                room -= len(text)
                if room <= 0:
                    break


def _check_fetched(file, facts):
    if not file.is_file():
        raise ValueError(f"{file}: missing from what was fetched: fetch again")
    found = sha256_of(file)
    if found != facts["sha256"]:
        raise ValueError(f"{file}: sha256 {found[:12]}…, recorded {facts['sha256'][:12]}…: delete it and fetch again")


def _check_counts(counts, weights, folder):
    documents = sum(count["documents"] for count in counts.values())
    if not documents:
        raise ValueError(f"{folder}: empty corpus, no document holds any text")
    for split, weight in weights.items():
        if weight and not counts[split]["documents"]:
            raise ValueError(
                f"{folder}: split {split} got none of the {documents} documents at the weights"
                f" {'/'.join(map(str, weights.values()))}: give it more weight or use more documents"
            )


def _describe(definition, folder, text, counts, per_domain, domains):
    serialised = text.tokenizer.to_str().encode("utf-8")
    (folder / "tokenizer.json").write_bytes(serialised)
    tokenizer = tokenization.describe(text, definition["tokenizer"]["kind"], serialised)
    tokenizer["end_of_text_string"] = text.tokenizer.id_to_token(text.end_of_text)
    files = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted([*FILES, "tokenizer.json"])
    }
    facts = [LAYOUT, files, domains, tokenizer["vocabulary"], tokenizer["end_of_text"]]
    manifest = {
        "layout": LAYOUT,
        # Of the content alone: the same text gives the same fingerprint wherever its folder lies
        "fingerprint": sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
        "definition": definition,
        "splits": counts,
        "domains": domains,
        "per_domain": per_domain,
        "tokenizer": tokenizer,
        "files": files,
        "versions": tokens.versions(),
    }
    write_json(folder / "manifest.json", manifest)
