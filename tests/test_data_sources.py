"""Every format gives the same documents; every fault of a file is one sentence naming the place."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from moe.data.sources import TEXT_DOCUMENT, list_files, read_documents

ROWS = [{"text": f"document {i}\nÄ line", "kind": {"name": "ab"[i % 2]}} for i in range(50)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write(folder, name, rows=LINES):
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(rows))
    elif name.endswith(".zst"):  # two frames, as parallel compressors write
        half = len(rows) // 2
        path.write_bytes(zstandard.compress(rows[:half]) + zstandard.compress(rows[half:]))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in rows.splitlines()]), path)
    else:
        path.write_bytes(rows)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_all_formats_give_the_same_documents(tmp_path, name):
    path = write(tmp_path, name)
    found = list(read_documents(path, text="text", domain="kind.name"))
    assert found == [(row["text"], row["kind"]["name"]) for row in ROWS]


def test_a_long_text_file_becomes_several_documents_cut_at_lines(tmp_path):
    text = "".join(f"line {i} ÄÖ\n" for i in range(30_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = [t for t, _ in read_documents(tmp_path / "a.txt")]
    assert "".join(found) == text
    assert len(found) > 1 and all(t.endswith("\n") for t in found)
    assert max(map(len, found)) < TEXT_DOCUMENT + 100


def test_files_come_in_the_order_of_their_relative_path_without_hidden_ones(tmp_path):
    for name in ("b.txt", "a.jsonl", ".hidden.txt", "c.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("x")
    assert [p.relative_to(tmp_path).as_posix() for p in list_files(tmp_path)] == ["a.jsonl", "b.txt", "sub/a.txt"]
    assert len(list_files(tmp_path, patterns=["**/*.txt"])) == 2


BAD = {
    "binary": ("a.txt", b"abc\0def", r"a\.txt: binary file \(a zero byte at byte 3\)"),
    "not UTF-8": ("a.txt", b"first line\nab\xff", r"a\.txt: not UTF-8 at byte 13 \(0xff\)"),
    "not UTF-8 jsonl": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"not UTF-8 at byte 24 \(0xe9\)"),
    "empty file": ("a.jsonl", b"", "a.jsonl: empty file"),
    "no JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not JSON at column"),
    "no object": ("a.jsonl", b"[1]\n", "a.jsonl, line 1: expected an object with the column 'text'"),
    "no column": (
        "a.jsonl",
        b'{"text": "a"}\n{"txt": "b"}\n',
        r"a\.jsonl, line 2: no column 'text'; did you mean 'txt'\?",
    ),
    "no text": ("a.jsonl", b'{"text": 3}\n', "a.jsonl, line 1: column 'text' holds '3', expected text"),
    "truncated gz": ("a.jsonl.gz", gzip.compress(LINES)[:-20], "truncated gzip file"),
    "no gz": ("a.jsonl.gz", LINES, "damaged or truncated gzip file"),
    "truncated zst": ("a.jsonl.zst", zstandard.compress(LINES)[:-9], "truncated zstd file"),
    "no zst": ("a.jsonl.zst", LINES, "damaged zstd file"),
    "no parquet": ("a.parquet", b"PAR1 and nothing", "damaged or truncated parquet file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence(tmp_path, case):
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        list(read_documents(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_truncated_parquet_and_an_unknown_column_are_named(tmp_path):
    path = write(tmp_path, "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'txet'; did you mean 'text'\?"):
        list(read_documents(path, text="txet"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="truncated parquet file"):
        list(read_documents(path))


def test_missing_and_empty_folders_are_named(tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(ValueError, match=r"no such folder of texts; did you mean 'texts'\?"):
        list_files(tmp_path / "text")
    with pytest.raises(ValueError, match="no text here, expected .txt, .*, found no file at all"):
        list_files(tmp_path / "texts")
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no file matches the pattern '\*.jsonl'"):
        list_files(tmp_path / "texts", patterns=["*.jsonl"])


def test_lone_surrogates_become_question_marks(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert list(read_documents(tmp_path / "a.jsonl")) == [("a?b", "text")]
