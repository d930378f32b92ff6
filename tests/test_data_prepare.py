"""Prepared corpora: the text comes back, splits and bytes are reproducible, nothing half-written."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from moe.data import Corpus, prepare
from moe.data import tokenizer as tokenization
from moe.data.storage import check_room, whole_folder
from moe.data.tokens import PIECE, pieces_of, split_of

SPLIT = {"train": 8, "valid": 1, "test": 1}
LAW = settings(deadline=None, max_examples=40)  # no deadline: machines are busy
BYTES = {"kind": "bytes"}
BPE = {"kind": "bpe", "vocabulary": 300, "sample_mb": 1}
REAL = os.environ.get("REROUTED_DATA")
WORKFLOW = Path(__file__).parents[1] / "workflow"


def write_texts(folder, documents=120, seed=0):
    """A folder of two files in two domains; every eleventh document is empty or a duplicate."""
    draw = random.Random(seed)
    words = ["expert", "router", "token", "gate", "Ärger", "日本", "sparse", "layer", "<|endoftext|>", "the"]
    texts = [" ".join(draw.choices(words, k=draw.randint(3, 60))) for _ in range(documents)]
    texts[11::22] = [""] * len(texts[11::22])
    texts[22::22] = [texts[0]] * len(texts[22::22])
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("a", texts[::2]), ("b", texts[1::2])):
        rows = (json.dumps({"text": text, "domain": name}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return [(text, "a") for text in texts[::2] if text] + [(text, "b") for text in texts[1::2] if text]


def definition(folder, tokenizer=BYTES, split=SPLIT, domain="domain"):
    source = {"kind": "files", "folder": str(folder), "domain": domain}
    return {"source": source, "tokenizer": tokenizer, "split": split}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    texts = write_texts(folder / "texts")
    prepare(definition(folder / "texts", BPE), folder / "bpe", workers=1)
    prepare(definition(folder / "texts", BYTES), folder / "bytes", workers=1)
    return folder, texts


def documents(corpus):
    """(split, text, domain) of every document, decoded, in order."""
    for split in ("train", "valid", "test"):
        tokens = corpus.tokens(split)
        starts, domains = corpus.documents(split)
        assert starts[0] == 0 and starts[-1] == len(tokens) and len(starts) == len(domains) + 1
        for i, domain in enumerate(domains):
            ids = tokens[starts[i] : starts[i + 1]]
            assert ids[-1] == corpus.end_of_text and corpus.end_of_text not in ids[:-1]
            yield split, corpus.tokenizer.decode(ids), corpus.domains[domain]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_document_comes_back_in_the_split_of_its_hash(prepared, kind):
    folder, texts = prepared
    corpus = Corpus(folder / kind)
    corpus.verify()
    found = list(documents(corpus))
    assert sorted((text, domain) for _, text, domain in found) == sorted(texts)
    assert all(split == split_of(text, SPLIT) for split, text, _ in found)
    for split in SPLIT:
        expected = [(t, d) for t, d in texts if split_of(t, SPLIT) == split]
        assert [(t, d) for s, t, d in found if s == split] == expected, "the order is that of the files"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_manifest_counts_what_is_there(prepared, kind):
    folder, texts = prepared
    corpus = Corpus(folder / kind)
    for split, counts in corpus.manifest["splits"].items():
        assert counts["tokens"] == len(corpus.tokens(split))
        assert counts["documents"] == len(corpus.documents(split)[1])
        own = [t for t, _ in texts if split_of(t, SPLIT) == split]
        assert counts["bytes"] == sum(len(t.encode()) for t in own)
    for domain, counts in corpus.manifest["per_domain"].items():
        own = [t for t, d in texts if d == domain]
        assert counts["documents"] == len(own) and counts["bytes"] == sum(len(t.encode()) for t in own)
    assert corpus.domains == ["a", "b"]
    assert corpus.tokens("train").dtype == np.uint16
    assert corpus.vocabulary == {"bytes": 257, "bpe": 300}[kind]


def test_words_of_documents_are_the_frequent_ones_of_the_training_text(tmp_path):
    texts = write_texts(tmp_path / "texts")
    words = {"kind": "words", "vocabulary": 7, "sample_mb": 1}
    prepare(definition(tmp_path / "texts", words), tmp_path / "words", workers=1)
    corpus = Corpus(tmp_path / "words")
    corpus.verify()
    train = [text for text, _ in texts if split_of(text, SPLIT) == "train"]
    kept = {word for word, _ in Counter(word for text in train for word in text.split()).most_common(5)}
    expected = [" ".join(w if w in kept else "<unk>" for w in text.split()) for text, _ in texts]
    found = {text.removesuffix(" \n") for _, text, _ in documents(corpus)}
    assert not found ^ set(expected)  # a difference of long lists would take pytest minutes to print
    assert (corpus.vocabulary, corpus.end_of_text) == (7, 0)
    assert corpus.tokenizer.encode("expert\nrouter\n").count(0) == 2, "an end of line is a token"
    with pytest.raises(ValueError, match="10 different words only: choose at most 12 or a larger sample_mb"):
        prepare(definition(tmp_path / "texts", words | {"vocabulary": 13}), tmp_path / "more", workers=1)


def test_the_same_text_gives_the_same_bytes_from_another_folder(prepared, tmp_path):
    folder, _ = prepared
    shutil.copytree(folder / "texts", tmp_path / "elsewhere")
    code = f"""
from moe.data import prepare
prepare({definition(tmp_path / "elsewhere", BPE)!r}, {str(tmp_path / "again")!r}, workers=2)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(WORKFLOW)})
    first, second = Corpus(folder / "bpe"), Corpus(tmp_path / "again")
    assert first.fingerprint == second.fingerprint
    assert first.manifest["files"] == second.manifest["files"]


def test_another_text_has_another_fingerprint(prepared, tmp_path):
    folder, _ = prepared
    write_texts(tmp_path / "texts", seed=1)
    prepare(definition(tmp_path / "texts"), tmp_path / "bytes", workers=1)
    assert Corpus(tmp_path / "bytes").fingerprint != Corpus(folder / "bytes").fingerprint


def test_a_new_preparation_replaces_the_old_one_and_clears_a_killed_one(prepared, tmp_path):
    write_texts(tmp_path / "texts")
    leftover = tmp_path / ".corpus.partial"
    leftover.mkdir()
    (leftover / "train.tokens.bin").write_bytes(b"half")
    (tmp_path / "corpus").mkdir()  # Snakemake makes the folders of its outputs
    for _ in range(2):
        prepare(definition(tmp_path / "texts"), tmp_path / "corpus", workers=1)
        Corpus(tmp_path / "corpus").verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "texts"]


def test_a_failure_leaves_nothing_and_a_stranger_is_never_deleted(tmp_path):
    target = tmp_path / "home"
    with pytest.raises(RuntimeError), whole_folder(target, may_replace=set()) as partial:
        (partial / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    (target / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="not replaced, since it holds 'thesis.txt'"):
        prepare(definition(tmp_path), target)
    assert (target / "thesis.txt").exists()


@pytest.mark.parametrize("damage", ["cut", "missing", "altered"])
def test_a_damaged_corpus_is_named_by_its_file(prepared, tmp_path, damage):
    shutil.copytree(prepared[0] / "bytes", tmp_path / "c")
    file = tmp_path / "c" / "train.tokens.bin"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[7] ^= 1
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.tokens\.bin: (\d+ bytes|missing|altered)"):
        Corpus(tmp_path / "c").verify()


def test_no_corpus_a_damaged_manifest_and_an_unknown_split_are_named(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json: no prepared corpus here; did you mean 'bytes'"):
        Corpus(prepared[0] / "byte")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: damaged, not JSON"):
        Corpus(tmp_path)
    with pytest.raises(ValueError, match=r"no split 'validation'; did you mean 'valid'\?"):
        Corpus(prepared[0] / "bytes").tokens("validation")


def test_empty_corpora_and_splits_without_documents_are_named(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="empty corpus, no document holds any text"):
        prepare(definition(tmp_path / "texts", domain=None), tmp_path / "c", workers=1)
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "alone"}\n')
    with pytest.raises(ValueError, match="split (train|valid|test) got none of the 1 documents at the weights 8/1/1"):
        prepare(definition(tmp_path / "texts", domain=None), tmp_path / "c", workers=1)
    prepare(
        definition(tmp_path / "texts", domain=None, split={"train": 1, "valid": 0, "test": 0}),
        tmp_path / "c",
        workers=1,
    )
    assert len(Corpus(tmp_path / "c").tokens("valid")) == 0


def word_tokenizer(path, unknown):
    """A tokenizer.json of three words, or of the letters a to z, that is far from covering text."""
    if unknown:
        model = models.WordLevel({"[UNK]": 0, "router": 1, "<|endoftext|>": 2}, unk_token="[UNK]")
    else:
        model = models.BPE({**{chr(97 + i): i for i in range(26)}, "<|endoftext|>": 26}, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(path))
    return {"kind": "file", "path": str(path)}


@pytest.mark.parametrize("unknown", [True, False])
def test_a_tokenizer_that_does_not_cover_the_text_is_refused(tmp_path, unknown):
    write_texts(tmp_path / "texts")
    with pytest.raises(ValueError, match="the tokenizer does not cover the corpus: it has no token for "):
        prepare(definition(tmp_path / "texts", word_tokenizer(tmp_path / "t.json", unknown)), tmp_path / "c", workers=1)
    assert not (tmp_path / "c").exists() and not (tmp_path / ".c.partial").exists()


def test_bad_tokenizer_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.jsn: no such tokenizer file"):
        tokenization.load_tokenizer(tmp_path / "tokenizer.jsn")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json"):
        tokenization.load_tokenizer(tmp_path / "tokenizer.json")
    word_tokenizer(tmp_path / "t.json", True)
    with pytest.raises(ValueError, match=r"no end-of-text token '<endoftext>' in its vocabulary; did you mean '<\|end"):
        tokenization.load_tokenizer(tmp_path / "t.json", end_of_text="<endoftext>")
    with pytest.raises(ValueError, match="tokenizer.vocabulary is 5000, but the training text has pairs for"):
        tokenization.train_bpe(["a little text"] * 9, vocabulary=5000)


def test_a_full_disk_is_named_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="needs about 1000000000.00 GB, but the disk has"):
        check_room(tmp_path, 1e18, "the prepared corpus")
    write_texts(tmp_path / "texts")
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="the prepared corpus needs about .* GB free"):
        prepare(definition(tmp_path / "texts"), tmp_path / "c", workers=1)
    assert not (tmp_path / "c").exists()


@LAW
@given(text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=300))
def test_bytes_are_tokens(text):
    tokenizer = tokenization.byte_tokenizer()
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@LAW
@given(text=st.text("a b\n.,é", max_size=200), longest=st.integers(4, 50))
def test_pieces_make_the_text_and_no_piece_is_long(text, longest):
    pieces = list(pieces_of(text, longest))
    assert "".join(pieces) == text and max(map(len, pieces)) <= longest


@LAW
@given(texts=st.lists(st.text(max_size=20), max_size=30), train=st.integers(1, 5), rest=st.integers(0, 5))
def test_the_split_of_a_text_depends_on_the_text_alone(texts, train, rest):
    weights = {"train": train, "valid": rest, "test": rest}
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    splits = [split_of(text, weights) for text in texts]
    assert splits == [split_of(text, weights) for text in texts]
    assert rest or set(splits) <= {"train"}


def test_the_weights_are_the_shares():
    drawn = [split_of(f"document {i}", {"train": 969, "valid": 30, "test": 1}) for i in range(20_000)]
    assert abs(drawn.count("train") / 20_000 - 0.969) < 0.005
    assert abs(drawn.count("valid") / 20_000 - 0.030) < 0.005


@pytest.mark.skipif(not REAL, reason="REROUTED_DATA is unset: no real GPT-2 tokenizer")
def test_cutting_a_long_document_changes_no_token_of_gpt2():
    gpt2 = tokenization.load_tokenizer(Path(REAL) / "tokenizers" / "gpt2" / "tokenizer.json")
    text = (Path(REAL) / "corpora" / "enwik8-prefix" / "enwik8").read_bytes()[: 4 * PIECE].decode("utf-8", "ignore")
    whole = gpt2.encode(text)
    for longest in (PIECE, 1000):
        pieces = list(pieces_of(text, longest))
        assert sum(gpt2.encode_batch(pieces), []) == whole and len(pieces) > 3
    assert tokenization.vocabulary_size(gpt2) == 50_257 and gpt2.end_of_text == 50_256


@pytest.mark.skipif(not REAL, reason="REROUTED_DATA is unset: no real texts")
def test_real_domains_with_the_real_gpt2_tokenizer(tmp_path):
    for name in ("books", "github"):  # the beginning of two domains
        lines = (Path(REAL) / "domains" / f"{name}.jsonl").read_bytes().splitlines(keepends=True)[:60]
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name}.jsonl").write_bytes(b"".join(lines))
    gpt2 = {"kind": "file", "path": str(Path(REAL) / "tokenizers" / "gpt2" / "tokenizer.json")}
    prepare(definition(tmp_path / "texts", gpt2), tmp_path / "c", workers=1)
    corpus = Corpus(tmp_path / "c")
    assert len(list(documents(corpus))) == sum(c["documents"] for c in corpus.manifest["splits"].values())
    assert len(corpus.domains) == 2


MEMORY = """
import resource, sys
from moe.data import prepare
prepare({definition!r}, {folder!r}, workers=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokenizer", "megabytes"), [(BYTES, 300), ({"kind": "bpe", "vocabulary": 1000, "sample_mb": 4}, 50)]
)
def test_memory_stays_below_a_gibibyte_however_long_the_corpus(tmp_path, tokenizer, megabytes):
    """One document of 20 MB among documents of 0.1 MB; what lies in memory is a few batches."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    text = " ".join(draw.choices(words, k=16_000))
    (tmp_path / "texts").mkdir()
    with open(tmp_path / "texts" / "a.jsonl", "w") as file:
        file.write(json.dumps({"text": f"{text} " * (20_000_000 // len(text))}) + "\n")
        for i in range((megabytes - 20) * 1_000_000 // len(text)):
            file.write(json.dumps({"text": f"{i} {text}"}) + "\n")
    code = MEMORY.format(definition=definition(tmp_path / "texts", tokenizer, domain=None), folder=str(tmp_path / "c"))
    environment = {**os.environ, "PYTHONPATH": str(WORKFLOW)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    peak = float(done.stdout.split()[-1])
    print(f"peak {peak:.0f} MiB")
    assert peak < 1024
