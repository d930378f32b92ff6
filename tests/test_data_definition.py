"""A wrong corpus definition is one sentence that names key, value and the nearest valid name."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from moe.data import check, load_definition, needs_fetch
from moe.data.__main__ import main
from moe.data.definition import EXACT, LOCAL_DOMAINS, RUNNING, SOURCES, TOKENIZERS

ROOT = Path(__file__).parents[1]
PINNED = "0123456789abcdef0123456789abcdef01234567"
HUB = {"kind": "hub", "name": "owner/texts", "split": "train", "revision": PINNED}
GOOD = {
    "source": {"kind": "local"},
    "tokenizer": {"kind": "bpe", "vocabulary": 300},
    "split": {"train": 8, "valid": 1, "test": 1},
}
ENWIK8 = {
    "source": {"kind": "file", "path": "x"},
    "tokenizer": {"kind": "byte-values"},
    "split": {"kind": "positions", "train": 90, "valid": 5, "test": 5},
}
SCHEMA = yaml.safe_load((ROOT / "workflow" / "schemas" / "corpus.schema.yaml").read_text())

BAD = {
    "unknown key": ({"sorce": {}}, r"has the unknown key 'sorce'; did you mean 'source'\?"),
    "missing key": ({"tokenizer": None}, "tokenizer is None, expected a key `kind`, one of bytes, bpe, file, hub"),
    "source kind": ({"source": {"kind": "locl"}}, r"source\.kind is 'locl', .*did you mean 'local'\?"),
    "tokenizer kind": ({"tokenizer": {"kind": "byte"}}, r"tokenizer\.kind is 'byte', .*did you mean 'bytes'\?"),
    "source key": ({"source": {"kind": "files", "foldr": "x"}}, r"unknown key 'foldr'; did you mean 'folder'\?"),
    "source lacks": ({"source": {"kind": "files"}}, "source lacks the key 'folder'"),
    "branch": ({"source": {**HUB, "revision": "main"}}, "source.revision is 'main', expected the 40 hex.* owner/texts"),
    "placeholder": ({"source": {**HUB, "revision": "0" * 40}}, "expected the 40 hexadecimal digits of a commit"),
    "short hash": ({"source": {**HUB, "revision": PINNED[:12]}}, "expected the 40 hexadecimal digits of a commit"),
    "no revision": ({"source": {**HUB, "revision": None}}, "source.revision is None, expected str"),
    "domain": ({"source": {"kind": "local", "domains": ["pyton"]}}, r"has 'pyton', .*did you mean 'python'\?"),
    "limit": ({"source": {**HUB, "limit_bytes": -1}}, "source.limit_bytes is -1, expected a number above 0"),
    "patterns": ({"source": {"kind": "files", "folder": "x", "patterns": "*.txt"}}, "expected a list of file patterns"),
    "vocabulary": ({"tokenizer": {"kind": "bpe", "vocabulary": 256}}, "vocabulary is 256, expected at least 257"),
    "vocabulary type": ({"tokenizer": {"kind": "bpe", "vocabulary": "4k"}}, "vocabulary is '4k', expected int"),
    "split name": ({"split": {"train": 1, "validation": 1, "test": 1}}, r"'validation'; did you mean 'valid'\?"),
    "split weight": ({"split": {"train": 0.9, "valid": 1, "test": 1}}, "split.train is 0.9, expected a whole number"),
    "split kind": ({"split": {"kind": "position", "train": 1, "valid": 1, "test": 1}}, "did you mean 'positions'"),
    "split of running text": (
        {"split": {"kind": "positions", "train": 9, "valid": 1, "test": 1}},
        "split by positions with tokenizer bpe, expected positions with tokenizer byte-values, files with",
    ),
    "words by hash": ({"tokenizer": {"kind": "words"}}, "or neither; words of documents need tokenizer.vocabulary"),
    "too few words": (
        {"tokenizer": {"kind": "words", "vocabulary": 2}},
        "vocabulary is 2, expected at least 3 .a word",
    ),
    "words without a number": ({"tokenizer": {"kind": "words", "vocabulary": "4k"}}, "vocabulary is '4k', expected at"),
    "some words of files": (
        {
            "tokenizer": {"kind": "words", "vocabulary": 99},
            "split": {"kind": "files", "train": ["a"], "valid": ["b"], "test": ["c"]},
        },
        "tokenizer.vocabulary is 99, expected none: with a split by files all words count",
    ),
    "split without patterns": (
        {"tokenizer": {"kind": "words"}, "split": {"kind": "files", "train": "a.txt", "valid": ["b"], "test": ["c"]}},
        "split.train is 'a.txt', expected a list of file patterns",
    ),
    "words of local text": (
        {"tokenizer": {"kind": "words"}, "split": {"kind": "files", "train": ["a"], "valid": ["b"], "test": ["c"]}},
        "source.kind is 'local', expected files or hub, which hold several",
    ),
    "one file by hash": ({"source": {"kind": "file", "path": "x"}}, "source.kind is 'file', expected with a split by"),
    "exact of documents": ({"exact": {"bytes": 9, "sha1": "0" * 40}}, "exact is given, expected with a split by pos"),
    "exact bytes": ({**ENWIK8, "exact": {"bytes": 0, "sha1": "0" * 40}}, "exact.bytes is 0, expected a whole number"),
    "exact SHA-1": ({**ENWIK8, "exact": {"bytes": 9, "sha1": "0" * 39}}, "exact.sha1 is '0*', expected 40 hexa"),
    "exact key": ({**ENWIK8, "exact": {"bytes": 9, "sha": "0" * 40}}, r"exact has the unknown key 'sha'; did you mean"),
    "prefix": ({**ENWIK8, "exact": {"bytes": 9, "sha1": "0" * 40, "prefix": 1}}, "exact.prefix is 1, expected true or"),
    "prefix of a branch": (
        {**ENWIK8, "source": {**HUB, "revision": "main"}, "exact": {"bytes": 9, "sha1": "0" * 40, "prefix": True}},
        "source.revision is 'main', expected the 40 hexadecimal digits",
    ),
    "neither split nor files": (
        {"source": {k: v for k, v in HUB.items() if k != "split"}},
        "source lacks the key 'split'",
    ),
    "no training text": ({"split": {"train": 0, "valid": 1, "test": 1}}, "split.train is 0, expected a weight above"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_definition_is_one_sentence(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message) as raised:
        check({**GOOD, **change}, where="corpora/x.yaml")
    assert str(raised.value).startswith("corpora/x.yaml") and "\n" not in str(raised.value)


# what fits together only in part, a schema for readers and editors need not say
TOGETHER = {"placeholder", "split of running text", "words by hash", "words of local text", "one file by hash"}
TOGETHER |= {"some words of files"}
TOGETHER |= {"exact of documents", "prefix of a branch", "neither split nor files"}


@pytest.mark.parametrize("case", sorted(set(BAD) - TOGETHER))
def test_the_schema_refuses_it_too(case):
    assert list(Draft202012Validator(SCHEMA).iter_errors({**GOOD, **BAD[case][0]}))


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "corpora").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_corpora_of_the_project_are_good(path):
    definition = load_definition(path)
    assert check(definition) == definition, "filling in defaults twice changes nothing"
    assert not list(Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(path.read_text())))
    assert needs_fetch(definition) == ("hub" in yaml.safe_dump(definition))


def test_a_text_with_a_checksum_of_its_own_needs_no_commit():
    exact = {"bytes": 9, "sha1": "0" * 40}
    given = {**ENWIK8, "source": {**HUB, "revision": "refs/convert/parquet"}, "exact": exact}
    assert check(given)["exact"] == {**exact, "prefix": False}
    assert not list(Draft202012Validator(SCHEMA).iter_errors(given))


def test_the_schema_and_the_checks_know_the_same_keys():
    for name, kinds in (("source", SOURCES), ("tokenizer", TOKENIZERS)):
        described = {entry["title"]: set(entry["properties"]) for entry in SCHEMA["properties"][name]["oneOf"]}
        assert described == {kind: {"kind", *need, *more} for kind, (need, more) in kinds.items()}
    kinds = [entry["title"] for entry in SCHEMA["properties"]["split"]["oneOf"]]
    assert kinds == ["hash", *RUNNING]
    assert set(SCHEMA["properties"]["exact"]["properties"]) == {key for keys in EXACT for key in keys}
    local = SCHEMA["properties"]["source"]["oneOf"][0]["properties"]["domains"]
    assert tuple(local["items"]["enum"]) == LOCAL_DOMAINS


def test_missing_and_broken_files_are_named(tmp_path):
    (tmp_path / "local.yaml").write_text("source: {kind: local")
    with pytest.raises(ValueError, match=r"locl\.yaml: no such corpus definition; did you mean 'local.yaml'\?"):
        load_definition(tmp_path / "locl.yaml")
    with pytest.raises(ValueError, match=r"local\.yaml: not readable as YAML"):
        load_definition(tmp_path / "local.yaml")


def test_the_command_ends_in_one_sentence_and_status_2(tmp_path):
    (tmp_path / "bad.yaml").write_text("source: {kind: files, folder: nowhere}\ntokenizer: {kind: bytes}\n")
    done = subprocess.run(
        [sys.executable, "-m", "moe.data", "prepare", str(tmp_path / "bad.yaml"), str(tmp_path / "c")],
        capture_output=True,
        text=True,
        cwd=ROOT / "workflow",
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: nowhere: no such folder of texts")
    assert not (tmp_path / "c").exists()


def test_every_command_runs(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for i in range(40):
        words = " ".join(f"the gate number{chr(97 + i % 26)} of router{chr(97 + j % 26)} opens," for j in range(60))
        (tmp_path / "texts" / f"{i:02d}.txt").write_text(words)
    definition = tmp_path / "good.yaml"
    definition.write_text(
        f"source: {{kind: files, folder: {tmp_path}/texts}}\n"
        "tokenizer: {kind: bytes}\nsplit: {train: 2, valid: 1, test: 2}\n"
    )
    folder = str(tmp_path / "c")
    assert main(["prepare", str(definition), folder, "--workers", "1"]) == 0
    assert main(["check", folder]) == 0
    assert main(["tasks", folder, "--count", "8"]) == 0
    assert main(["benchmark", str(definition), "--megabytes", "0.1"]) == 0
    assert "ratio" in capsys.readouterr().out
    assert main(["fetch", str(definition), folder]) == 2
    assert "has nothing to fetch" in capsys.readouterr().err
