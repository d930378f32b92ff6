"""Instructions in Alpaca's form: an instruction, an input that may be empty, and the output that is wanted.

Prompts and form: Stanford Alpaca (Taori et al. 2023), `train.py` and `alpaca_data.json`. The output stands directly
after the prompt.
"""

import json
from pathlib import Path
from typing import NamedTuple

from moe.wrong import nearest

REQUIRED = ("instruction", "output")
KEYS = ("instruction", "input", "output", "text")  # text: the whole prompt, as the hub's copy has it; not read
SUFFIXES = (".json", ".jsonl", ".parquet")
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
SHOWN = 40  # characters of a value in a sentence


class Example(NamedTuple):
    """One instruction; `input` may be empty."""

    instruction: str
    input: str
    output: str


def prompt_of(example):
    """What the model is given: Alpaca's prompt, with or without an input."""
    return (WITH_INPUT if example.input else WITHOUT_INPUT).format_map(example._asdict())


def read_examples(path):
    """Examples of a .json (a list), .jsonl (one a line) or .parquet file, in order.

    Errors: ValueError, one sentence with file, line (of a parquet file: row), key, value and the nearest valid key.
    """
    path = Path(path)
    suffix = path.suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: ends with {suffix!r}, expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if suffix == ".parquet":
        rows = _parquet(path)
    else:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not UTF-8 text at byte {error.start}") from None
        rows = (_list if suffix == ".json" else _lines)(text, path)
    examples = [_example(row, where) for where, row in rows]
    if not examples:
        raise ValueError(f"{path}: holds no instruction")
    return examples


def _example(row, where):
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {_short(row)} is {_kind(row)}, expected an object with keys {', '.join(KEYS[:3])}")
    for key in row:
        if key not in KEYS:
            raise ValueError(f"{where}: key {_short(key)} is unknown{nearest(key, KEYS[:3])}")
    for key in REQUIRED:
        if key not in row:
            raise ValueError(f"{where}: key {key!r} is missing, expected text")
    for key, value in row.items():
        if not isinstance(value, str):
            raise ValueError(f"{where}, key {key}: {_short(value)} is {_kind(value)}, expected text")
        if not value.isprintable():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{where}, key {key}: {_short(value)} holds half of a surrogate pair") from None
    if not row["instruction"].strip():
        raise ValueError(f"{where}, key instruction: {_short(row['instruction'])} is blank, expected an instruction")
    return Example(row["instruction"], row.get("input", ""), row["output"])


def _list(text, path):
    """(where, value) of each entry of a JSON list, parsed one by one so that each has its line."""
    place = _skip(text, 0)
    if text[place : place + 1] != "[":
        raise ValueError(f"{path}, line {_line(text, place)}: expected a list of instructions, [ in front")
    place = _skip(text, place + 1)
    first = True
    while text[place : place + 1] != "]":
        if not first:
            if text[place : place + 1] != ",":
                raise ValueError(f"{path}, line {_line(text, place)}: is not valid JSON (expected a comma or ])")
            place = _skip(text, place + 1)
        where = f"{path}, line {_line(text, place)}"
        value, place = _parsed(text, place, path)
        yield where, value
        place, first = _skip(text, place), False
    rest = _skip(text, place + 1)
    if rest < len(text):
        raise ValueError(f"{path}, line {_line(text, rest)}: is not valid JSON (text after the list)")


def _lines(text, path):
    """(where, value) of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            value, end = _parsed(line, _skip(line, 0), path, number)
            if _skip(line, end) < len(line):
                raise ValueError(f"{where}: is not valid JSON (text after the object)")
            yield where, value


def _parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: damaged or truncated parquet file ({reason})") from None
    for number, row in enumerate(table.to_pylist()):
        yield f"{path}, row {number}", row


def _parsed(text, place, path, line=None):
    try:
        return DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        number = line or _line(text, error.pos)
        raise ValueError(f"{path}, line {number}: is not valid JSON ({error.msg})") from None
    except (_Twice, RecursionError) as error:
        raise ValueError(f"{path}, line {line or _line(text, place)}: is not valid JSON ({error})") from None


class _Twice(Exception):
    """A key that stands twice in one object, of which the parser would keep the last."""


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Twice(f"key {_short(twice)} stands twice, expected once")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _skip(text, place):
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _line(text, place):
    return text.count("\n", 0, place) + 1


def _short(value):
    said = repr(value)
    return said if len(said) <= SHOWN else said[:SHOWN] + "…"


def _kind(value):
    names = {dict: "an object", list: "a list", type(None): "null", bool: "true or false", str: "text"}
    return names.get(type(value), "a number")
