"""Files of config/ as Python values; whatever is wrong with one ends in one sentence with the file and the line."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Rows as dicts of text; lines that start with # are comments. ValueError where tabs were lost."""
    lines = _text(path, "table").splitlines()
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise ValueError(f"{path}: the table is empty, expected a line of column names")
    header = numbered[0][1].split("\t")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}, line {numbered[0][0]}: column {twice!r} stands twice, expected each once")
    rows = []
    for (number, line), cells in zip(
        numbered[1:],
        csv.reader((line for _, line in numbered[1:]), delimiter="\t", quoting=csv.QUOTE_NONE),
        strict=True,
    ):
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {number} ({line[:30].strip()!r}…): has {len(cells)} cells, expected {len(header)} "
                "separated by tabs"
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; ValueError with the line of a syntax error or the key of a number that is not finite."""
    try:
        content = _parse(_text(path, "file"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{place}: is not valid YAML ({_reason(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected keys and values")
    for key, value in _not_finite(content):
        raise ValueError(f"{path}, key {key}: {value} is not finite, expected a number")
    return content


def typed(config: dict[str, Any], within: bool = False) -> dict[str, Any]:
    """The config with numbers where `--config key='{name: 1}'` has them: Snakemake leaves text inside of a mapping."""
    return {key: _typed(value, within) for key, value in config.items()}


def _typed(value: Any, within: bool) -> Any:
    if isinstance(value, dict):
        return typed(value, within=True)
    return int(value) if within and isinstance(value, str) and value.isdecimal() else value


def parse_options(cell: str, where: str) -> dict[str, Any]:
    """`state: 128, bias: true` -> dict."""
    try:
        options = _parse(f"{{{cell}}}")
    except yaml.YAMLError as error:
        raise ValueError(
            f"{where}: {cell!r} is not valid YAML ({_reason(error)}), expected option: value, option: value"
        ) from None
    if any(value is None for value in options.values()):
        raise ValueError(f"{where}: {cell!r} gives an option without a value, expected option: value")
    for key, value in _not_finite(options):
        raise ValueError(f"{where}: option {key} is {value}, which is not finite, expected a number")
    return options


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which PyYAML would keep the last, and aliases, which may hold themselves."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            problem = f"*{alias.anchor} is an alias, expected the value itself"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=alias.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    problem = f"key {key.value!r} stands there and in line {lines[key.value]}, expected once"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                lines[key.value] = key.start_mark.line + 1
        return node


def _parse(text: str) -> Any:
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except (ValueError, RecursionError) as error:  # such as a date in month 13
        raise yaml.YAMLError(str(error)) from None


def _reason(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _not_finite(content: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every NaN and infinity in nested mappings and lists, with its key; YAML spells them .nan and .inf."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _not_finite(value, f"{path}.{key}" if path else str(key))
    elif isinstance(content, float) and not math.isfinite(content):
        yield path, content


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: the {what} is missing") from None
    except OSError as error:
        raise ValueError(f"{path}: the {what} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text at byte {error.start}") from None
