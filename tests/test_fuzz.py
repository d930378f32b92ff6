"""Whatever tables, setups, definitions and instruction sets hold: it is taken, or refused in one sentence.

Files of the project spoiled at random: cells and values replaced, lines and bytes lost, doubled or cut.
"""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe.claims import check_claims
from moe.data.alpaca import read_examples
from moe.data.definition import load_definition
from moe.data.instructions import load_instructions
from moe.figures import check_figures
from moe.table_files import load_yaml
from moe.tables import Tables

ROOT = Path(__file__).parent.parent
CASES = int(
    os.environ.get("FUZZ_CASES", 60)
)  # of each of four tests of all tables; of the other three five times as many
TSV = ["runs.tsv", "finetunes.tsv", "figures.tsv", "claims.tsv"]
YAML = ["scales/smoke.yaml", *(str(p.relative_to(ROOT / "config")) for p in ROOT.glob("config/setups/*.yaml"))]
YAML += ["hardware/a100-8.yaml"]
DEFINITIONS = [p for kind in ("corpora", "instructions") for p in sorted(ROOT.glob(f"config/{kind}/*.yaml"))]

words = st.sampled_from(
    ["", "0", "-1", "1e400", "nan", "none", "topk", "remoe-182m", "{", "[a", "a: b: c", "x == ", "__class__"]
)
texts = words | st.text(max_size=20)
numbers = st.integers(-(10**20), 10**20) | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
PROMISE = "Files and settings spoiled at random: taken, or refused in one sentence"


def tried(cases):
    """Settings of a test with so many cases, and its line in docs/reliability.md."""
    of_hypothesis = settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck))
    return lambda test: pytest.mark.promise(PROMISE, inputs=cases)(of_hypothesis(test))


fuzzed, fuzzed_more = (tried(cases) for cases in (CASES, 5 * CASES))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "config"
    shutil.copytree(ROOT / "config", folder)
    return load_yaml(ROOT / "config/config.yaml") | {"tables": str(folder), "scale": "smoke"}


def one_sentence(call):
    """Run it; what it says is a ValueError of one line."""
    try:
        call()
    except ValueError as error:
        assert type(error) is ValueError and str(error) and "\n" not in str(error), repr(error)


def read(config):
    tables = Tables(config, ROOT / "workflow/schemas")
    rows = list(tables.runs.values())
    for run in tables.runs:
        tables.spec(run)
    check_figures(tables.figures, rows, tables.folder / "reported")
    check_claims(tables.claims, rows, tables.folder / "reported", tables.figures)


def spoil_bytes(data, content: bytes) -> bytes:
    """Some bytes replaced, lost, doubled, or the rest cut off."""
    at = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, 40))
    new = data.draw(st.binary(max_size=8) | texts.map(lambda t: t.encode("utf-8", "surrogatepass")))
    return data.draw(
        st.sampled_from(
            [content[:at] + new + content[at + length :], content[:at], content[:at] + content[max(0, at - length) :]]
        )
    )


def spoil_cells(data, content: bytes) -> bytes:
    """A cell replaced, a line doubled or lost, two cells exchanged."""
    lines = content.decode().split("\n")
    number = data.draw(st.integers(0, len(lines) - 1))
    cells = lines[number].split("\t")
    how = data.draw(st.sampled_from(["cell", "cell", "cell", "double", "lose", "exchange"]))
    place, other = (data.draw(st.integers(0, len(cells) - 1)) for _ in range(2))
    if how == "cell":
        cells[place] = data.draw(texts.map(lambda t: t.replace("\n", " ")))
    if how == "exchange":
        cells[place], cells[other] = cells[other], cells[place]
    lines[number] = "\t".join(cells)
    if how == "double":
        lines.insert(number, lines[number])
    if how == "lose":
        del lines[number]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def spoil_values(data, content: dict) -> dict:
    """A value somewhere in a tree replaced, lost, or one added."""
    content = deepcopy(content)
    node = content
    while True:
        key = data.draw(
            st.sampled_from(sorted(node, key=str)) if isinstance(node, dict) else st.integers(0, len(node) - 1)
        )
        inner = node[key]
        if not (isinstance(inner, dict | list) and inner) or data.draw(st.integers(0, 3)) == 0:
            break
        node = inner
    how = data.draw(st.sampled_from(["replace", "replace", "replace", "lose", "add"]))
    if how == "replace":
        node[key] = data.draw(values)
    elif how == "lose":
        del node[key]
    elif isinstance(node, dict):
        node[data.draw(texts)] = data.draw(values)
    else:
        node.append(data.draw(values))
    return content


def with_file(config, name, content: bytes):
    """Read the tables with one file spoiled, and mend it."""
    path = Path(config["tables"]) / name
    path.write_bytes(content)
    try:
        one_sentence(lambda: read(config))
    finally:
        shutil.copy(ROOT / "config" / name, path)


@given(data=st.data())
@fuzzed
def test_settings(data, config):
    one_sentence(lambda: read(spoil_values(data, config) | {"tables": config["tables"]}))


@given(data=st.data(), name=st.sampled_from(TSV))
@fuzzed
def test_cells_of_tables(data, name, config):
    with_file(config, name, spoil_cells(data, (ROOT / "config" / name).read_bytes()))


@given(data=st.data(), name=st.sampled_from(YAML))
@fuzzed
def test_values_of_setups_scales_and_hardware(data, name, config):
    content = spoil_values(data, yaml.safe_load((ROOT / "config" / name).read_text()))
    with_file(config | {"hardware": "a100-8"}, name, yaml.safe_dump(content).encode())


@given(data=st.data(), name=st.sampled_from(TSV + YAML))
@fuzzed
def test_bytes_of_tables_setups_and_scales(data, name, config):
    with_file(config, name, spoil_bytes(data, (ROOT / "config" / name).read_bytes()))


@given(data=st.data(), path=st.sampled_from(DEFINITIONS))
@fuzzed_more
def test_definitions_of_corpora_and_instructions(data, path, tmp_path_factory):
    spoiled = tmp_path_factory.mktemp("definition") / path.name
    content = path.read_bytes()
    if data.draw(st.booleans()):
        content = yaml.safe_dump(spoil_values(data, yaml.safe_load(content))).encode()
    else:
        content = spoil_bytes(data, content)
    spoiled.write_bytes(content)
    one_sentence(lambda: (load_definition if path.parent.name == "corpora" else load_instructions)(spoiled))


EXAMPLES = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Say hello.", "output": "Hello."}]


@given(data=st.data(), ending=st.sampled_from(["json", "jsonl"]))
@fuzzed_more
def test_values_of_instruction_sets(data, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("alpaca") / f"set.{ending}"
    examples = spoil_values(data, {"all": EXAMPLES}).get("all")
    lines = examples if isinstance(examples, list) else [examples]
    path.write_text(json.dumps(examples) if ending == "json" else "\n".join(map(json.dumps, lines)))
    one_sentence(lambda: list(read_examples(path)))


@given(data=st.data(), ending=st.sampled_from(["json", "jsonl", "parquet"]))
@fuzzed_more
def test_bytes_of_instruction_sets(data, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("alpaca") / f"set.{ending}"
    whole = json.dumps(EXAMPLES) if ending == "json" else "\n".join(map(json.dumps, EXAMPLES))
    path.write_bytes(spoil_bytes(data, whole.encode()))
    one_sentence(lambda: list(read_examples(path)))
