"""Documents of text files: .txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet, streamed in bounded memory.

Every reader yields (text, domain). Every fault of a file is a ValueError of one sentence that names
the file and the line, row or byte.
"""

import gzip
import json
import zlib
from pathlib import Path

import zstandard

from moe.wrong import did_you_mean

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
CHUNK = 1 << 20
# A text file longer than this becomes several documents, cut at line ends: a corpus of one big file
# (enwik8, WikiText) still has documents enough for three splits, and fits in memory.
TEXT_DOCUMENT = 1 << 16
LONGEST_LINE = 1 << 26
NO_DOMAIN = "text"


def list_files(folder, *, patterns=None):
    """Readable files below `folder` in the order of their relative path, hidden ones left out."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        near = [p.name for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        raise ValueError(f"{folder}: no such folder of texts{did_you_mean(folder.name, near)}")
    found = set()
    for pattern in patterns or ["**/*"]:
        matches = [p for p in folder.glob(pattern) if p.is_file()]
        if patterns and not matches:
            raise ValueError(f"{folder}: no file matches the pattern {pattern!r}")
        found.update(matches)
    visible = [p for p in found if not any(x.startswith(".") for x in p.relative_to(folder).parts)]
    files = sorted((p for p in visible if _suffix(p)), key=lambda p: p.relative_to(folder).as_posix())
    if not files:
        seen = ", ".join(sorted({p.suffix or p.name for p in visible})[:5]) or "no file at all"
        raise ValueError(f"{folder}: no text here, expected {', '.join(SUFFIXES)}, found {seen}")
    return files


def read_documents(path, *, text="text", domain=None):
    """Yield (text, domain) of one file; `text` and `domain` are columns, a dot reaches into a struct."""
    path = Path(path)
    suffix = _suffix(path)
    if suffix is None:
        raise ValueError(f"{path}: expected a file named {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: empty file, expected text")
    if suffix == ".txt":
        return _read_text(path)
    if suffix == ".parquet":
        return _read_parquet(path, text, domain)
    return _read_jsonl(path, suffix, text, domain)


def _suffix(path):
    return next((s for s in SUFFIXES if path.name.endswith(s)), None)


def _read_text(path):
    offset, lines, size = 0, [], 0
    for line in _lines(_plain(path)):
        lines.append(_decode(line, path, offset))
        offset += len(line)
        size += len(line)
        if size >= TEXT_DOCUMENT:
            yield "".join(lines), NO_DOMAIN
            lines, size = [], 0
    if lines:
        yield "".join(lines), NO_DOMAIN


def _read_jsonl(path, suffix, text, domain):
    chunks = {".jsonl": _plain, ".jsonl.gz": _gzip, ".jsonl.zst": _zstd}[suffix](path)
    offset = 0
    for number, line in enumerate(_lines(chunks), start=1):
        if line.strip():
            decoded = _decode(line, path, offset)
            where = f"{path}, line {number}"
            try:
                row = json.loads(decoded)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON at column {error.colno}: {error.msg}") from None
            yield _document(row, text, domain, where)
        offset += len(line)


def _read_parquet(path, text, domain):
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=CHUNK) as file:
            names = file.schema_arrow.names
            wanted = [text] if domain is None else [text, domain]
            for column in wanted:
                if column.split(".")[0] not in names:
                    hint = did_you_mean(column, names)
                    raise ValueError(f"{path}: no column {column!r}{hint}")
            for batch in file.iter_batches(batch_size=512, columns=wanted, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(row, text, domain, f"{path}, row {number}")
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{path}: damaged or truncated parquet file ({reason})") from None


def _document(row, text, domain, where):
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with the column {text!r}, got {str(row)[:40]!r}")
    value = _column(row, text, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}: column {text!r} holds {str(value)[:40]!r}, expected text")
    if not value.isascii():  # JSON may hold lone surrogates, which are no text
        value = value.encode("utf-8", "replace").decode("utf-8")
    return value, NO_DOMAIN if domain is None else str(_column(row, domain, where))


def _column(row, column, where):
    value = row
    for name in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or name not in value:
            known = value if isinstance(value, dict) else ()
            raise ValueError(f"{where}: no column {column!r}{did_you_mean(name, known)}")
        value = value[name]
    return value


def _decode(line, path, offset):
    if b"\0" in line:
        at = offset + line.index(b"\0")
        raise ValueError(f"{path}: binary file (a zero byte at byte {at}), expected UTF-8 text")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        byte = line[error.start]
        raise ValueError(f"{path}: not UTF-8 at byte {at} (0x{byte:02x}), expected UTF-8 text") from None


def _lines(chunks):
    """Lines of a stream of bytes with their ends; what has no line end for LONGEST_LINE is cut."""
    rest, size = [], 0
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line, b"\n"])
            rest, size = [], 0
        if last:
            rest.append(last)
            size += len(last)
        if size > LONGEST_LINE:
            piece = b"".join(rest)
            cut = len(piece) - 1
            while cut and piece[cut] & 0xC0 == 0x80:  # never inside a UTF-8 character
                cut -= 1
            yield piece[:cut]
            rest, size = [piece[cut:]], len(piece) - cut
    if rest:
        yield b"".join(rest)


def _plain(path):
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _gzip(path):
    try:
        with gzip.open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file ({error})") from None


def _zstd(path):
    """Chunks of a zstd file; its stream reader ends silently at a cut, so frames are followed by hand."""
    frames = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None
    try:
        for raw in _plain(path):
            while raw:
                frame = frame or frames.decompressobj()
                chunk = frame.decompress(raw)
                if chunk:
                    yield chunk
                raw, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise ValueError(f"{path}: damaged zstd file ({error})") from None
    if frame is not None:
        raise ValueError(f"{path}: truncated zstd file, its last frame does not end")
