"""Running text: enwik8 by its bytes, WikiText by its words. Each split is one stream; nothing in it marks a document.

Two ways, as RMoE's small models read them: the whole text cut at byte positions, a token for each byte value that
occurs; or files that were published as train, valid and test, a token for each word that occurs and one for each end
of a line.
"""

import zipfile
from array import array
from collections import Counter
from fnmatch import fnmatch
from hashlib import sha1
from pathlib import Path

import numpy as np

from moe.data import tokenizer as tokenization
from moe.data.definition import SPLITS
from moe.data.storage import check_room
from moe.wrong import did_you_mean

AT_ONCE = 1 << 20  # words held before they are written
WIDEST = 4  # bytes of a token in its file


def write_running(definition, documents, folder):
    """Write token, document and domain files of every split of a checked definition into `folder`.

    documents: prepare.Documents. Returns (tokenizer.Text, counts by split); each split is one document of the one
    domain. Errors: ValueError for text of other bytes than `exact` says, a split without text, an unreadable file.
    """
    writes = {"positions": _write_bytes, "files": _write_words}[definition["split"]["kind"]]
    check_room(folder, documents.bytes() * WIDEST / 2, "the prepared corpus")
    text, counts = writes(definition, documents, folder)
    for split in SPLITS:
        np.save(folder / f"{split}.documents.npy", np.array([0, counts[split]["tokens"]], "<i8"))
        np.save(folder / f"{split}.domains.npy", np.zeros(1, "<u2"))
    return text, counts


def _write_bytes(definition, documents, folder):
    data = whole_text(documents)
    if definition["exact"]:
        check_exact(data, definition["exact"], documents.files[0])
    weights = [definition["split"][split] for split in SPLITS]
    ends = [len(data) * sum(weights[: i + 1]) // sum(weights) for i in range(len(SPLITS))]
    bytes_T = np.frombuffer(data, np.uint8)
    values = np.flatnonzero(np.bincount(bytes_T, minlength=256))
    text = tokenization.byte_value_tokenizer(values.tolist())
    id_of_byte = np.zeros(256, tokenization.token_type(len(values)))
    id_of_byte[values] = np.arange(len(values))
    counts = {}
    for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False):
        if start == end and definition["split"][split]:
            raise ValueError(f"{documents.files[0]}: split {split} is empty, {len(data)} bytes are too few for three")
        id_of_byte[bytes_T[start:end]].tofile(folder / f"{split}.tokens.bin")
        counts[split] = {"documents": 1, "tokens": end - start, "bytes": end - start}
    return text, counts


def whole_text(documents):
    """All bytes of the text, in memory: of a file as they are (of a .zip, of its one member), else of all documents."""
    if documents.as_is:
        (path,) = documents.files
        if not path.name.endswith(".zip"):
            return path.read_bytes()
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise ValueError(f"{path}: holds {len(names)} files, expected the one with the text")
                return archive.read(names[0])
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: damaged or truncated zip file ({error})") from None
    return b"".join(text.encode("utf-8") for text, _ in documents)


def check_exact(data, exact, where):
    """Refuse a text of other bytes than it should have; with `prefix` any that is not longer passes."""
    if exact["prefix"]:
        if not 0 < len(data) <= exact["bytes"]:
            raise ValueError(f"{where}: {len(data)} bytes, expected a beginning of {exact['bytes']} bytes")
        return
    if len(data) != exact["bytes"]:
        hint = ", or exact.prefix: true for a beginning of it" if len(data) < exact["bytes"] else ""
        raise ValueError(f"{where}: {len(data)} bytes, expected the {exact['bytes']} of the whole text{hint}")
    found = sha1(data, usedforsecurity=False).hexdigest()
    if found != exact["sha1"]:
        raise ValueError(f"{where}: another text of the same length, SHA-1 {found}, expected {exact['sha1']}")


def _write_words(definition, documents, folder):
    files = files_of_splits(definition["split"], documents)
    seen = Counter()
    for split in SPLITS:
        for words in map(str.split, _lines(documents, files[split])):
            seen.update(words)
            seen[tokenization.END_OF_LINE] += 1
            if tokenization.END_OF_LINE in words:
                problem = f"the word {tokenization.END_OF_LINE} occurs, which stands for the end of a line"
                raise ValueError(f"{files[split][0]}: {problem}")
    ids = {word: i for i, (word, _) in enumerate(seen.most_common())}  # of equally many the first that occurs
    text = tokenization.word_tokenizer(ids)
    return text, {split: _write_split(documents, files[split], ids, folder, split) for split in SPLITS}


def _write_split(documents, files, ids, folder, split):
    dtype, end = tokenization.token_type(len(ids)), ids[tokenization.END_OF_LINE]
    waiting, tokens, size = array("I"), 0, 0
    with open(folder / f"{split}.tokens.bin", "wb") as out:

        def flush():
            out.write(np.frombuffer(waiting, np.uint32).astype(dtype).tobytes())
            waiting[:] = array("I")

        for line in _lines(documents, files):
            before = len(waiting)
            waiting.extend([ids[word] for word in line.split()])
            waiting.append(end)
            tokens += len(waiting) - before
            size += len(line.encode("utf-8")) + 1
            if len(waiting) >= AT_ONCE:
                flush()
        flush()
    if not tokens:
        raise ValueError(f"{files[0]}: split {split} is empty")
    return {"documents": 1, "tokens": tokens, "bytes": size}


def _lines(documents, files):
    """Lines without their ends: of a text file, or a row each of the other kinds."""
    for file in files:
        for text, _ in documents.read(file):
            yield from text.removesuffix("\n").split("\n")


def files_of_splits(split, documents):
    """Split -> its files, in order. Errors: ValueError where a pattern fits no file, or two splits share one."""
    found, taken = {}, {}
    for name in SPLITS:
        found[name] = []
        for pattern in split[name]:
            fits = [file for file in documents.files if fnmatch(_within(file, documents.root), pattern)]
            if not fits:
                raise ValueError(f"{documents.root}: no file of split {name} matches the pattern {pattern!r}")
            found[name] += [file for file in fits if file not in found[name]]
        for file in found[name]:
            if file in taken:
                raise ValueError(f"{file}: belongs to the splits {taken[file]} and {name}, expected one")
            taken[file] = name
    return found


def _within(file, root):
    return file.relative_to(root).as_posix()


def one_file(path):
    """The file of source kind `file`; ValueError where it is missing or empty."""
    path = Path(path).expanduser()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ValueError(f"{path}: no such file{did_you_mean(path.name, near)}")
    if not path.stat().st_size:
        raise ValueError(f"{path}: empty file, expected text")
    return path
