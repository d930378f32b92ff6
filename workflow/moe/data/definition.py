"""A corpus definition (config/corpora/*.yaml): which keys exist, and one sentence for what is wrong.

The JSON schema beside the tables describes the same keys for readers and editors; a test keeps the
two together. The checks live here because a schema cannot name the nearest valid key.
"""

import re
from pathlib import Path

import yaml

from moe.wrong import did_you_mean

# kind -> (required keys, optional keys with defaults)
SOURCES = {
    "local": ({}, {"domains": None, "limit_mb": None}),
    "file": ({"path": str}, {}),
    "files": ({"folder": str}, {"text": "text", "domain": None, "patterns": None}),
    "hub": (
        {"name": str, "revision": str},
        {"split": None, "config": None, "text": "text", "domain": None, "files": None, "limit_bytes": None},
    ),
}
TOKENIZERS = {
    "bytes": ({}, {}),
    "bpe": ({"vocabulary": int}, {"sample_mb": 64}),
    "file": ({"path": str}, {"end_of_text": "<|endoftext|>"}),
    "hub": (
        {"name": str, "revision": str},
        {"file": "tokenizer.json", "end_of_text": "<|endoftext|>"},
    ),
    "byte-values": ({}, {}),
    "words": ({}, {"vocabulary": None, "sample_mb": 64}),
}
# kind of split -> the tokenizer that goes with it: text that runs on, without documents (moe/data/running.py);
# words go with documents, too, where it is said how many
RUNNING = {"positions": "byte-values", "files": "words"}
EXACT = ({"bytes": int, "sha1": str}, {"prefix": False})
SPLITS = ("train", "valid", "test")
SPLIT_WEIGHTS = {"train": 969, "valid": 30, "test": 1}  # ReMoE's, in thousandths
LOCAL_DOMAINS = ("python", "cpp", "prose", "examples")
SMALLEST_BPE = 257  # every byte and the end of text
FEWEST_WORDS = 3  # a word, the end of a line, and what stands for the others


def load_definition(path):
    """Read and check the YAML file of a corpus; ValueError names the file and what is wrong in it."""
    path = Path(path)
    try:
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = [p.name for p in path.parent.glob("*.yaml")]
        raise ValueError(f"{path}: no such corpus definition{did_you_mean(path.name, others)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not readable as YAML: {reason}") from None
    return check(definition, where=str(path))


def check(definition, *, where="corpus definition"):
    """The definition with every default filled in; ValueError in one sentence where it is wrong."""
    if not isinstance(definition, dict):
        raise ValueError(f"{where}: expected keys source, tokenizer, split, got {definition!r}")
    _known_keys(definition, ("source", "tokenizer", "split", "exact"), where, required=("source", "tokenizer"))
    source = part_of(definition["source"], SOURCES, f"{where}: source")
    tokenizer = part_of(definition["tokenizer"], TOKENIZERS, f"{where}: tokenizer")
    split = _check_split(definition.get("split", SPLIT_WEIGHTS), f"{where}: split")
    exact = _check_exact(definition.get("exact"), split, f"{where}: exact")
    _check_running(source, tokenizer, split, where)
    for part, name in ((source, "source"), (tokenizer, "tokenizer")):
        # a text whose own checksum is known is refused when it differs, wherever it comes from
        if part["kind"] == "hub" and (name == "tokenizer" or not exact or exact["prefix"]):
            check_revision(part["revision"], part["name"], f"{where}: {name}.revision")
    if source["kind"] == "local":
        _check_local(source, f"{where}: source")
    if tokenizer["kind"] == "bpe":
        _check_trained(tokenizer, f"{where}: tokenizer", SMALLEST_BPE, "256 bytes and the end of text")
    if tokenizer["kind"] == "words" and tokenizer["vocabulary"] is not None:
        _check_trained(tokenizer, f"{where}: tokenizer", FEWEST_WORDS, "a word, the end of a line and the unknown one")
    if source["kind"] == "hub":
        _check_positive(source["limit_bytes"], f"{where}: source.limit_bytes")
    for key in ("patterns", "files"):
        value = source.get(key)
        if value is not None and not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            raise ValueError(f"{where}: source.{key} is {value!r}, expected a list of file patterns")
    if source["kind"] == "hub" and not source["split"] and not source["files"]:
        raise ValueError(f"{where}: source lacks the key 'split', or 'files' instead")
    return {"source": source, "tokenizer": tokenizer, "split": split, "exact": exact}


def check_revision(revision, name, where):
    """Refuse a revision that does not pin: branches, tags, short hashes and placeholders move or lie."""
    pinned = re.fullmatch(r"[0-9a-f]{40}", str(revision)) and len(set(str(revision))) > 4
    if not pinned:
        raise ValueError(
            f"{where} is {revision!r}, expected the 40 hexadecimal digits of a commit of {name}:"
            " copy them from the history of its files, since a branch or a tag may move"
        )


def part_of(part, kinds, where):
    """A section whose key `kind` says which others it has, defaults filled in; ValueError in one sentence."""
    if not isinstance(part, dict) or "kind" not in part:
        raise ValueError(f"{where} is {part!r}, expected a key `kind`, one of {', '.join(kinds)}")
    kind = part["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}.kind is {kind!r}, which is unknown{did_you_mean(str(kind), kinds)}")
    required, optional = kinds[kind]
    _known_keys(part, ("kind", *required, *optional), where, required=required)
    for key, expected in required.items():
        if not isinstance(part[key], expected) or isinstance(part[key], bool):
            raise ValueError(f"{where}.{key} is {part[key]!r}, expected {expected.__name__}")
    for key, default in optional.items():
        if isinstance(default, str) and not isinstance(part.get(key, default), str):
            raise ValueError(f"{where}.{key} is {part[key]!r}, expected str")
    return {**optional, **part}


def _known_keys(given, known, where, *, required):
    for key in given:
        if key not in known:
            raise ValueError(f"{where} has the unknown key {key!r}{did_you_mean(key, known)}")
    for key in required:
        if key not in given:
            raise ValueError(f"{where} lacks the key {key!r}")


def _check_local(source, where):
    if not isinstance(source["domains"], list | tuple | type(None)):
        raise ValueError(f"{where}.domains is {source['domains']!r}, expected a list of {', '.join(LOCAL_DOMAINS)}")
    for domain in source["domains"] or ():
        if domain not in LOCAL_DOMAINS:
            hint = did_you_mean(domain, LOCAL_DOMAINS)
            raise ValueError(f"{where}.domains has {domain!r}, which is unknown{hint}")
    _check_positive(source["limit_mb"], f"{where}.limit_mb")


def _check_trained(tokenizer, where, fewest, which):
    size = tokenizer["vocabulary"]
    if isinstance(size, bool) or not isinstance(size, int) or size < fewest:
        raise ValueError(f"{where}.vocabulary is {size!r}, expected at least {fewest} ({which})")
    if tokenizer["sample_mb"] is None:
        raise ValueError(f"{where}.sample_mb is empty, expected a number of megabytes")
    _check_positive(tokenizer["sample_mb"], f"{where}.sample_mb")


def _check_positive(value, where):
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ValueError(f"{where} is {value!r}, expected a number above 0")


def _check_running(source, tokenizer, split, where):
    """A split by positions or by files, its tokenizer and its source fit each other; files become the source's own."""
    kind, told = split.get("kind"), tokenizer.get("vocabulary")
    if tokenizer["kind"] == "words" and kind == "files" and told is not None:
        raise ValueError(
            f"{where}: tokenizer.vocabulary is {told!r}, expected none: with a split by files all words count"
        )
    running = tokenizer["kind"] in RUNNING.values() and (tokenizer["kind"] != "words" or told is None)
    if RUNNING.get(kind) != (tokenizer["kind"] if running else None):
        pairs = ", ".join(f"{one} with tokenizer {other}" for one, other in RUNNING.items())
        found = f"split by {kind or 'hash'} with tokenizer {tokenizer['kind']}"
        hint = "; words of documents need tokenizer.vocabulary" if tokenizer["kind"] == "words" and not kind else ""
        raise ValueError(f"{where}: {found}, expected {pairs}, or neither{hint}")
    if source["kind"] == "file" and kind != "positions":
        raise ValueError(f"{where}: source.kind is 'file', expected with a split by positions, which one file has")
    if kind == "files":
        key = {"files": "patterns", "hub": "files"}.get(source["kind"])
        if key is None:
            raise ValueError(f"{where}: source.kind is {source['kind']!r}, expected files or hub, which hold several")
        source[key] = list(dict.fromkeys(pattern for name in SPLITS for pattern in split[name]))


def _check_exact(exact, split, where):
    """The bytes that a running text must have, or None."""
    if exact is None:
        return None
    if not isinstance(exact, dict):
        raise ValueError(f"{where} is {exact!r}, expected bytes and sha1 of the text")
    if split.get("kind") != "positions":
        raise ValueError(f"{where} is given, expected with a split by positions alone")
    required, optional = EXACT
    _known_keys(exact, (*required, *optional), where, required=required)
    if isinstance(exact["bytes"], bool) or not isinstance(exact["bytes"], int) or exact["bytes"] < 1:
        raise ValueError(f"{where}.bytes is {exact['bytes']!r}, expected a whole number, 1 or more")
    if not re.fullmatch(r"[0-9a-f]{40}", str(exact["sha1"])):
        raise ValueError(f"{where}.sha1 is {exact['sha1']!r}, expected 40 hexadecimal digits")
    prefix = exact.get("prefix", False)
    if not isinstance(prefix, bool):
        raise ValueError(f"{where}.prefix is {prefix!r}, expected true or false")
    return {**optional, **exact}


def _check_split(split, where):
    if not isinstance(split, dict):
        raise ValueError(f"{where} is {split!r}, expected weights of train, valid and test")
    kind = split.get("kind")
    if "kind" in split and (not isinstance(kind, str) or kind not in RUNNING):
        raise ValueError(f"{where}.kind is {kind!r}, which is unknown{did_you_mean(str(kind), RUNNING)}")
    _known_keys(split, (*SPLITS, "kind"), where, required=SPLITS)
    if kind == "files":
        for name in SPLITS:
            found = split[name]
            if not (isinstance(found, list) and found and all(isinstance(one, str) for one in found)):
                raise ValueError(f"{where}.{name} is {found!r}, expected a list of file patterns")
        return dict(split)
    for name in SPLITS:
        weight = split[name]
        if isinstance(weight, bool) or not isinstance(weight, int) or weight < 0:
            raise ValueError(f"{where}.{name} is {weight!r}, expected a whole number, 0 or more")
    if split["train"] == 0:
        raise ValueError(f"{where}.train is 0, expected a weight above 0")
    return ({"kind": kind} if kind else {}) | {name: split[name] for name in SPLITS}
