"""Running text: bytes at positions and words of published files come back as they are; any other text is refused."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe.data import Corpus, Streams, fetch, prepare
from moe.data.__main__ import main
from moe.data.tokenizer import END_OF_LINE

REAL = os.environ.get("REROUTED_DATA")
SPLITS = ("train", "valid", "test")
TEXT = (
    b"x" * 31 + "".join(f"<page>Ärger {i} 日本\t…</page>\n" for i in range(400)).encode()
)  # a cut lies inside a character
LINES = {  # as WikiText has them: a space before and after, empty lines
    "train": [" ", " = A title = ", " ", " The router sends a token , the <unk> token , on . ", " the gate , too . "],
    "valid": [" ", " = A router = ", " the gate sends a token . "],
    "test": [" the <unk> gate . ", " "],
}
WORDS = {"kind": "files"} | {split: [f"{split}.txt"] for split in SPLITS}


def bytes_of(path, text=TEXT, **exact):
    return {
        "source": {"kind": "file", "path": str(path)},
        "exact": {"bytes": len(text), "sha1": hashlib.sha1(text).hexdigest()} | exact,
        "tokenizer": {"kind": "byte-values"},
        "split": {"kind": "positions", "train": 90, "valid": 5, "test": 5},
    }


def words_of(folder, split=WORDS):
    return {"source": {"kind": "files", "folder": str(folder)}, "tokenizer": {"kind": "words"}, "split": split}


def write_lines(folder):
    folder.mkdir()
    for split, lines in LINES.items():
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text8"
    path.write_bytes(TEXT)
    return path


def test_bytes_are_cut_at_positions_even_inside_a_character(text, tmp_path):
    prepare(bytes_of(text), tmp_path / "c")
    corpus = Corpus(tmp_path / "c")
    corpus.verify()
    values = sorted(set(TEXT))
    found = {split: bytes(values[i] for i in corpus.tokens(split)) for split in SPLITS}
    assert b"".join(found.values()) == TEXT and corpus.vocabulary == len(values)
    assert [len(found[split]) for split in SPLITS] == [
        len(TEXT) * 90 // 100,
        len(TEXT) * 95 // 100 - len(TEXT) * 90 // 100,
        len(TEXT) - len(TEXT) * 95 // 100,
    ]
    with pytest.raises(UnicodeDecodeError):
        found["train"].decode()
    for split in SPLITS:
        starts, domains = corpus.documents(split)
        assert starts.tolist() == [0, len(found[split])] and domains.tolist() == [0]
        assert corpus.manifest["splits"][split] == {"documents": 1} | dict.fromkeys(
            ("tokens", "bytes"), len(found[split])
        )
    assert corpus.tokenizer.encode("<page>…\n") == [values.index(byte) for byte in "<page>…\n".encode()]
    assert corpus.tokenizer.decode(corpus.tokens("test")[-8:]) == TEXT[-8:].decode()
    assert values[corpus.end_of_text] == ord("\n")


def test_a_zip_and_the_rows_of_the_hub_give_the_same_corpus(text, tmp_path):
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.write(text, "text8")
    root = tmp_path / "mirror/owner/text8/raw"
    root.mkdir(parents=True)
    pq.write_table(pa.table({"text": [TEXT.decode()]}), root / "0.parquet")
    hub = bytes_of(text)
    hub["source"] = {
        "kind": "hub",
        "name": "owner/text8",
        "revision": "refs/convert/parquet",
        "files": ["raw/*.parquet"],
    }
    fetch(hub, tmp_path / "f", mirror=tmp_path / "mirror")
    prepare(hub, tmp_path / "hub", fetched=tmp_path / "f")
    prepare(bytes_of(text), tmp_path / "file")
    prepare(bytes_of(tmp_path / "text8.zip"), tmp_path / "zip")
    assert len({Corpus(tmp_path / name).fingerprint for name in ("hub", "file", "zip")}) == 1


def test_the_streams_of_a_model_read_it(text, tmp_path):
    prepare(bytes_of(text), tmp_path / "c")
    streams = Streams(Corpus(tmp_path / "c"), "valid", 16, 4)
    blocks = np.concatenate([streams.at(step)[:, :-1] for step in range(len(streams))], 1)
    assert blocks.shape == (4, 16 * len(streams)) and blocks.max() < len(set(TEXT))


REFUSED = {
    "shorter": (
        TEXT[:-1],
        {},
        "13920 bytes, expected the 13921 of the whole text, or exact.prefix: true for a beginning",
    ),
    "longer": (TEXT + b"x", {}, "13922 bytes, expected the 13921 of the whole text$"),
    "another": (TEXT[:-1] + b"x", {}, "another text of the same length, SHA-1 [0-9a-f]{40}, expected [0-9a-f]{40}$"),
    "longer than its whole": (TEXT + b"x", {"prefix": True}, "13922 bytes, expected a beginning of 13921 bytes"),
    "too short for three": (TEXT[:5], {"prefix": True}, "split valid is empty, 5 bytes are too few for three"),
    "empty": (b"", {"prefix": True}, "empty file, expected text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_bytes_are_refused_in_one_sentence(case, tmp_path):
    assert len(TEXT) == 13921
    given, exact, message = REFUSED[case]
    (tmp_path / "text8").write_bytes(given)
    with pytest.raises(ValueError, match=message) as raised:
        prepare(bytes_of(tmp_path / "text8", **exact), tmp_path / "c")
    assert str(raised.value).startswith(f"{tmp_path}/text8: ") and "\n" not in str(raised.value)
    assert not (tmp_path / "c").exists()


def test_a_missing_file_and_a_wrong_zip_are_named(text, tmp_path):
    with pytest.raises(ValueError, match=r"txt8: no such file; did you mean 'text8'\?"):
        prepare(bytes_of(tmp_path / "txt8"), tmp_path / "c")
    (tmp_path / "a.zip").write_bytes(b"PK and nothing")
    with pytest.raises(ValueError, match="a.zip: damaged or truncated zip file"):
        prepare(bytes_of(tmp_path / "a.zip"), tmp_path / "c")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("one", "1")
        archive.writestr("two", "2")
    with pytest.raises(ValueError, match="b.zip: holds 2 files, expected the one with the text"):
        prepare(bytes_of(tmp_path / "b.zip"), tmp_path / "c")


def test_a_beginning_is_taken_where_the_definition_says_so(tmp_path):
    (tmp_path / "text8").write_bytes(TEXT[:1000])
    prepare(bytes_of(tmp_path / "text8", prefix=True), tmp_path / "c")
    assert [len(Corpus(tmp_path / "c").tokens(split)) for split in SPLITS] == [900, 50, 50]


def spelled(corpus, split):
    """The tokens of a split, as words."""
    return [corpus.tokenizer.tokenizer.id_to_token(int(i)) for i in corpus.tokens(split)]


def test_each_file_is_its_split_with_an_end_a_line(tmp_path):
    prepare(words_of(write_lines(tmp_path / "wiki")), tmp_path / "c")
    corpus = Corpus(tmp_path / "c")
    for split, lines in LINES.items():
        assert spelled(corpus, split) == [word for line in lines for word in [*line.split(), END_OF_LINE]]
        assert corpus.manifest["splits"][split]["bytes"] == (tmp_path / "wiki" / f"{split}.txt").stat().st_size
        text = corpus.tokenizer.decode(corpus.tokens(split))
        assert text.split() == (tmp_path / "wiki" / f"{split}.txt").read_text().split()
        assert corpus.tokenizer.encode(text) == corpus.tokens(split).tolist()
    words = {word for lines in LINES.values() for line in lines for word in line.split()}
    assert corpus.vocabulary == len(words) + 1 and "<unk>" in words
    ids = [corpus.tokenizer.tokenizer.token_to_id(word) for word in (END_OF_LINE, ".", "gate")]
    assert ids[0] == corpus.end_of_text == 0 and ids == sorted(ids), "frequent words first"


def test_rows_of_the_hub_are_lines(tmp_path):
    """With the line's end in the row, or an empty row for an empty line, as the hub has WikiText."""
    root = tmp_path / "mirror/owner/wiki/v1"
    root.mkdir(parents=True)
    for split, lines in LINES.items():
        halves = [lines[:2], lines[2:]] if split == "train" else [lines]
        for i, part in enumerate(halves):
            rows = [f"{line}\n" if line.strip() else "" for line in part]
            pq.write_table(pa.table({"text": rows}), root / f"{split}-{i}.parquet")
    patterns = {"kind": "files"} | {split: [f"v1/{split}-*.parquet"] for split in SPLITS}
    hub = words_of(tmp_path, patterns) | {
        "source": {"kind": "hub", "name": "owner/wiki", "revision": "0123456789abcdef0123456789abcdef01234567"}
    }
    fetch(hub, tmp_path / "f", mirror=tmp_path / "mirror")
    prepare(hub, tmp_path / "hub", fetched=tmp_path / "f")
    prepare(words_of(write_lines(tmp_path / "wiki")), tmp_path / "files")
    for split in SPLITS:
        assert spelled(Corpus(tmp_path / "hub"), split) == spelled(Corpus(tmp_path / "files"), split)


def test_wrong_file_sets_are_named(tmp_path):
    folder = write_lines(tmp_path / "wiki")
    with pytest.raises(ValueError, match=r"no file matches the pattern 'dev\.txt'"):
        prepare(words_of(folder, {**WORDS, "valid": ["dev.txt"]}), tmp_path / "c")
    with pytest.raises(ValueError, match=r"test\.txt: belongs to the splits valid and test, expected one"):
        prepare(words_of(folder, {**WORDS, "valid": ["test.txt"]}), tmp_path / "c")
    (folder / "test.txt").write_text("a <eos> b\n")
    with pytest.raises(ValueError, match=r"test\.txt: the word <eos> occurs, which stands for the end of a line"):
        prepare(words_of(folder), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_tokenization_of_running_text_is_not_timed(text, tmp_path, capsys):
    import yaml

    (tmp_path / "c.yaml").write_text(yaml.safe_dump(bytes_of(text)))
    assert main(["benchmark", str(tmp_path / "c.yaml")]) == 2
    assert "a running text has no documents" in capsys.readouterr().err


@pytest.mark.skipif(not REAL, reason="REROUTED_DATA is unset: no real texts")
def test_the_real_texts(tmp_path):
    """WikiText-2 has the published numbers of tokens and words; of enwik8 a beginning is at hand."""
    prepare(words_of(Path(REAL) / "corpora/wikitext-2"), tmp_path / "wiki")
    wiki = Corpus(tmp_path / "wiki")
    assert [len(wiki.tokens(split)) for split in SPLITS] == [2_088_628, 217_646, 245_569] and wiki.vocabulary == 33_278
    path = Path(REAL) / "corpora/enwik8-prefix/enwik8"
    whole = {"bytes": 100_000_000, "sha1": "57b8363b814821dc9d47aa4d41f58733519076b2"}
    prepare(bytes_of(path, **whole, prefix=True), tmp_path / "enwik8")
    assert Corpus(tmp_path / "enwik8").vocabulary <= 205
    with pytest.raises(ValueError, match="expected the 100000000 of the whole text"):
        prepare(bytes_of(path, **whole), tmp_path / "c")
