"""Local tasks: fields, balance, no repetition, truth of the answers, reproducible."""

import json
import random
import shutil
from collections import Counter

import pytest

from moe.data import Corpus, make_local_tasks, prepare

TEXT = (
    "the router sends every token through experts whose gates remember what earlier layers decided and then"
    " memory grows slowly while balance matters because sparse models learn quickly from large text"
)
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "texts").mkdir()
    draw = random.Random(0)
    with open(folder / "texts" / "a.jsonl", "w") as file:
        for i in range(60):
            own = [f"{w}{chr(97 + i % 26)}" for w in WORDS[:8]] + WORDS
            sentence = " ".join(draw.choices(own, k=400))
            file.write(json.dumps({"text": sentence, "domain": "ab"[i % 2]}) + "\n")
    prepare(
        {
            "source": {"kind": "files", "folder": str(folder / "texts"), "domain": "domain"},
            "tokenizer": {"kind": "bytes"},
            "split": {"train": 1, "valid": 1, "test": 3},
        },
        folder / "c",
        workers=1,
    )
    return folder / "c"


def rows(paths):
    return {p.stem.removeprefix("local_"): [json.loads(line) for line in p.read_text().splitlines()] for p in paths}


def test_fields_answers_and_balance(corpus):
    made = rows(make_local_tasks(corpus, count=40, context_bytes=150))
    test = Corpus(corpus)
    text = test.tokenizer.decode(test.tokens("test"))
    for row in made["last_word"]:
        assert set(row) == {"context", "word"}
        assert row["context"] + " " + row["word"] in text and row["word"] in row["context"]
    for row in made["best_ending"]:
        assert set(row) == {"context", "endings", "label"} and len(set(row["endings"])) == 4
        assert row["context"] + " " + row["endings"][row["label"]] in text
    for row in made["cloze"]:
        assert set(row) == {"passage", "statement", "label"}
        assert (row["statement"] in " ".join(row["passage"].split())) == bool(row["label"])
    assert set(Counter(row["label"] for row in made["best_ending"]).values()) == {10}
    assert Counter(row["label"] for row in made["cloze"]) == {0: 20, 1: 20}
    for name, found in made.items():
        contexts = [row.get("context", row.get("passage")) for row in found]
        assert len(set(contexts)) == len(contexts) == 40, name
        assert max(len(c.encode()) for c in contexts) <= 150


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(corpus):
    first = [p.read_bytes() for p in make_local_tasks(corpus, count=20)]
    again = [p.read_bytes() for p in make_local_tasks(corpus, count=20)]
    other = [p.read_bytes() for p in make_local_tasks(corpus, count=20, seed=1)]
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


def test_tasks_do_not_disturb_the_corpus(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "c")
    make_local_tasks(tmp_path / "c", count=8)
    Corpus(tmp_path / "c").verify()


def test_too_little_text_is_named(tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"short {i}")
    prepare(
        {
            "source": {"kind": "files", "folder": str(tmp_path / "texts")},
            "tokenizer": {"kind": "bytes"},
            "split": {"train": 1, "valid": 1, "test": 1},
        },
        tmp_path / "c",
        workers=1,
    )
    with pytest.raises(ValueError, match="the test split has running text for 0 documents of local_last_word"):
        make_local_tasks(tmp_path / "c")
