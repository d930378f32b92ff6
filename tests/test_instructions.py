"""Instructions in Alpaca's form: the prompt, where the loss is, files that are wrong, and those made of the corpus."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import END_OF_TEXT

from moe.data import Corpus, Instructions, prepare
from moe.data.alpaca import Example, prompt_of, read_examples
from moe.data.docstrings import docstring_examples, documented_functions
from moe.data.instructions import check_instructions, load_instructions, prepare_instructions
from moe.finetune import padded
from moe.model import IGNORED

SOURCE = '''
@decorated(1)
def add(a, b=(1, 2)):  # a comment
    """Return the sum of two numbers, both given."""
    return a + b


class Thing:
    async def wait(
        self,
        seconds: float,
    ) -> None:
        """Wait for so many seconds,

        and no longer.
        """

    def short(self):
        """Too short."""

    def none(self):
        return 1


def one_line(x): "A docstring that stands beside the signature."
'''


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Bytes as tokens, so that every number can be counted by hand; half of the documents are Python."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for i in range(60):
        text = f'def f{i}(x):\n    """Return {i} times the number x, plainly."""\n    return {i} * x\n'
        lines.append(
            {"text": text * 3, "domain": "python"} if i % 2 else {"text": f"{i} some words", "domain": "prose"}
        )
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"kind": "files", "folder": str(folder), "domain": "domain"}
    split = {"train": 1, "valid": 1, "test": 1}
    prepare({"source": source, "tokenizer": {"kind": "bytes"}, "split": split}, folder / "corpus", workers=1)
    return Corpus(folder / "corpus")


def prepared(corpus, tmp_path, examples, **options):
    path = tmp_path / "given.json"
    path.write_text(json.dumps(examples))
    definition = check_instructions({"kind": "file", "path": str(path)} | options)
    manifest = prepare_instructions(definition, corpus.folder, tmp_path / "set")
    return manifest, tmp_path / "set"


def test_the_prompt_is_alpacas_with_and_without_an_input():
    assert prompt_of(Example("Name a {colour}.", "", "Red.")) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a {colour}.\n\n### Response:"
    )
    assert prompt_of(Example("Add.", "1 and 2", "3")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
        "### Response:"
    )


def test_the_loss_is_on_the_response_and_its_end_alone(corpus, tmp_path):
    given = [{"instruction": "Say ho.", "input": "", "output": "ho"}]
    manifest, folder = prepared(corpus, tmp_path, given)
    prompt = prompt_of(Example("Say ho.", "", "ho")).encode()
    ((tokens, length),) = Instructions(folder, batch=1, seed=0).at(0)
    assert bytes(tokens[:-1].astype(np.uint8)) == prompt + b"ho" and tokens[-1] == END_OF_TEXT
    assert length == len(prompt) and manifest["answers"] == 3 and manifest["tokens"] == len(prompt) + 3
    inputs_BS, targets_BS, real_BS = padded([(tokens, length)])
    assert inputs_BS[0].tolist() == list(prompt + b"ho") and real_BS.all()
    counted = targets_BS[0] != IGNORED
    assert targets_BS[0][counted].tolist() == [ord("h"), ord("o"), END_OF_TEXT]
    assert counted.nonzero()[:, 0].tolist() == [len(prompt) - 1, len(prompt), len(prompt) + 1]


def test_padding_is_no_target_and_not_real():
    inputs_BS, targets_BS, real_BS = padded([([1, 2, 3, 4], 1), ([5, 6], 1)])
    assert inputs_BS.tolist() == [[1, 2, 3], [5, 0, 0]]
    assert targets_BS.tolist() == [[2, 3, 4], [6, IGNORED, IGNORED]]
    assert real_BS.tolist() == [[True, True, True], [True, False, False]]


def test_a_response_is_cut_at_the_most_tokens_and_one_that_has_none_is_left_out(corpus, tmp_path):
    size = len(prompt_of(Example("Go.", "", "")).encode())
    given = [{"instruction": "Go.", "output": "abcdef"}, {"instruction": "Go on.", "output": "ab"}]
    manifest, folder = prepared(corpus, tmp_path, given, max_tokens=size + 3)
    assert (manifest["examples"], manifest["cut"], manifest["left_out"]) == (1, 1, 1)
    ((tokens, prompt),) = Instructions(folder, batch=1, seed=0).at(0)
    assert prompt == size and bytes(tokens[size:].astype(np.uint8)) == b"abc"
    manifest, folder = prepared(corpus, tmp_path, given, max_tokens=size + 7)
    assert (manifest["examples"], manifest["cut"], manifest["left_out"]) == (2, 0, 0)
    with pytest.raises(ValueError, match=f"no instruction has a response within {size} tokens"):
        prepared(corpus, tmp_path, given, max_tokens=size)
    # a limit takes whole ones alone
    manifest, _ = prepared(corpus, tmp_path, given, max_tokens=size + 6, limit=2)
    assert (manifest["examples"], manifest["cut"], manifest["left_out"]) == (1, 0, 1)


def test_every_epoch_visits_each_example_once_and_ranks_share_a_batch(corpus, tmp_path):
    given = [{"instruction": f"Count to {i}.", "output": "x" * i} for i in range(1, 8)]
    _, folder = prepared(corpus, tmp_path, given)
    batches = Instructions(folder, batch=4, seed=3)
    drawn = [len(tokens) - prompt - 1 for step in range(7) for tokens, prompt in batches.at(step)]
    assert len(batches) == 7 and all(sorted(drawn[7 * e : 7 * e + 7]) == list(range(1, 8)) for e in range(4))
    assert drawn[:7] != drawn[7:14]
    for step in range(3):
        whole = batches.at(step)
        parts = [*batches.at(step, 0, 2), *batches.at(step, 1, 2)]
        assert all((a == b).all() and m == n for (a, m), (b, n) in zip(whole, parts, strict=True))
        assert batches.lengths(step) == [len(tokens) - 1 for tokens, _ in whole]
        assert batches.answers(step) == sum(len(tokens) - prompt for tokens, prompt in whole)
    assert [batches.read(n) for n in (0, 1, 5)] == [sum(sum(batches.lengths(s)) for s in range(n)) for n in (0, 1, 5)]


def test_an_altered_set_is_named(corpus, tmp_path):
    _, folder = prepared(corpus, tmp_path, [{"instruction": "Go.", "output": "a"}])
    (folder / "prompts.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="prompts.npy: is missing or altered: prepare the instructions again"):
        Instructions(folder, batch=1, seed=0)


def test_the_three_forms_of_a_file_are_one(tmp_path):
    rows = [
        {"instruction": "a", "input": "", "output": "é\nb", "text": "whole prompt"},
        {"instruction": "c", "input": "d", "output": "", "text": ""},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [Example("a", "", "é\nb"), Example("c", "d", "")]
    for suffix in ("json", "jsonl", "parquet"):
        assert read_examples(tmp_path / f"a.{suffix}") == expected


GOOD = '{"instruction": "a", "output": "b"}'
SPOILED = {
    "a key misspelt": (f'{GOOD}\n{{"intruction": "a", "output": "b"}}', "line 2: key 'intruction' is unknown; the nearest valid name is 'instruction'"),
    "no output": ('{"instruction": "a"}', "line 1: key 'output' is missing, expected text"),
    "a number": ('{"instruction": "a", "output": 3}', "line 1, key output: 3 is a number, expected text"),
    "null": ('{"instruction": "a", "input": null, "output": "b"}', "line 1, key input: None is null, expected text"),
    "a list": ('{"instruction": ["a"], "output": "b"}', "line 1, key instruction: ['a'] is a list, expected text"),
    "a blank instruction": ('{"instruction": " ", "output": "b"}', "line 1, key instruction: ' ' is blank, expected an instruction"),
    "no object": (f"{GOOD}\n\n[1]", "line 3: [1] is a list, expected an object with keys instruction, input, output"),
    "a key twice": ('{"instruction": "a", "instruction": "b", "output": ""}', "line 1: is not valid JSON (key 'instruction' stands twice, expected once)"),
    "cut": (f'{GOOD}\n{{"instruction": "a", "out', "line 2: is not valid JSON (Unterminated string starting at)"),
    "two objects a line": (f"{GOOD} {GOOD}", "line 1: is not valid JSON (text after the object)"),
    "half a surrogate": ('{"instruction": "a", "output": "\\ud800"}', "line 1, key output: '\\ud800' holds half of a surrogate pair"),
    "nothing": ("\n", "holds no instruction"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_a_malformed_line_is_one_sentence(what, tmp_path):
    content, says = SPOILED[what]
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_examples(path)
    assert str(error.value).startswith(str(path)) and says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"[\n{GOOD},\n{{}}]", "line 3: key 'instruction' is missing"),
        (f"[\n{GOOD}\n{GOOD}]", "line 3: is not valid JSON (expected a comma or ])"),
        (f"[{GOOD},\n", "line 2: is not valid JSON (Expecting value)"),
        (f"[{GOOD}]\n\nmore", "line 3: is not valid JSON (text after the list)"),
        (GOOD, "line 1: expected a list of instructions, [ in front"),
        ("[]", "holds no instruction"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_malformed_list_names_the_line_of_the_entry(content, says, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_examples(path)
    assert str(error.value).startswith(str(path)) and says in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[\xff")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.csv").write_text("")
    for name, says in [
        ("a.json", "is not UTF-8 text at byte 1"),
        ("a.parquet", "damaged or truncated parquet file"),
        ("a.csv", "ends with '.csv', expected one of .json, .jsonl, .parquet"),
        ("b.json", "no such file"),
    ]:
        with pytest.raises(ValueError, match=says):
            read_examples(tmp_path / name)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["instruction", "input", "output", "instrution", "out", ""]) | st.text(max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES, max_size=3), cut=st.integers(0, 400))
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_sentence(rows, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for suffix, text in (("json", json.dumps(rows)), ("jsonl", "\n".join(map(json.dumps, rows)))):
        path = folder / f"data.{suffix}"
        for content in (text, text[:cut], text.replace('"', "", 1)):
            path.write_text(content)
            try:
                examples = read_examples(path)
            except ValueError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
            else:
                assert examples and all(e.instruction.strip() and isinstance(e.output, str) for e in examples)


def test_signatures_and_docstrings_are_those_of_the_source():
    assert list(documented_functions(SOURCE)) == [
        ("def add(a, b=(1, 2)):", "Return the sum of two numbers, both given."),
        ("async def wait(\n    self,\n    seconds: float,\n) -> None:", "Wait for so many seconds,\n\nand no longer."),
    ]
    assert not list(documented_functions("def broken(:\n")) and not list(documented_functions("\0"))


def test_docstrings_are_of_training_documents_alone_and_always_the_same(corpus):
    made = docstring_examples(corpus)
    assert made == docstring_examples(corpus) and len(set(made)) == len(made)
    starts, domains = corpus.documents("train")
    documents = int((domains == corpus.domains.index("python")).sum())
    assert 1 < len(made) == documents < 30, "each document has one function, written three times"
    text = {s: corpus.tokenizer.decode(corpus.tokens(s).tolist()) for s in ("train", "valid", "test")}
    for example in made:
        assert example.instruction == "Write the docstring of this function."
        assert example.input in text["train"] and example.output in text["train"]
        assert example.input not in text["valid"] + text["test"]


def test_a_corpus_without_python_says_so(tmp_path):
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": f"{i} words"}) for i in range(30)))
    source = {"kind": "files", "folder": str(tmp_path)}
    split = {"train": 1, "valid": 1, "test": 1}
    prepare({"source": source, "tokenizer": {"kind": "bytes"}, "split": split}, tmp_path / "corpus", workers=1)
    with pytest.raises(ValueError, match="of kind docstrings need documents of domain 'python', the corpus has text"):
        prepare_instructions(check_instructions({"kind": "docstrings"}), tmp_path / "corpus", tmp_path / "set")


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        ({"kind": "docstring"}, "kind is 'docstring', which is unknown; did you mean 'docstrings'?"),
        ({"kind": "file"}, "lacks the key 'path'"),
        ({"kind": "docstrings", "max_token": 3}, "unknown key 'max_token'; did you mean 'max_tokens'?"),
        ({"kind": "docstrings", "max_tokens": 1}, "max_tokens is 1, expected a whole number, 2 or more"),
        ({"kind": "docstrings", "limit": True}, "limit is True, expected a whole number, 1 or more"),
        ({"kind": "hub", "name": "a/b", "revision": "main", "file": "x"}, "revision is 'main', expected the 40"),
        (3, "is 3, expected a key `kind`"),
    ],
)
def test_a_wrong_definition_is_one_sentence(definition, says):
    with pytest.raises(ValueError, match=says.replace("?", r"\?")) as error:
        check_instructions(definition)
    assert "\n" not in str(error.value)


def test_the_projects_own_definitions_are_right(tmp_path):
    from test_tables import ROOT

    paths = sorted((ROOT / "config/instructions").glob("*.yaml"))
    assert {path.stem for path in paths} >= {"alpaca", "docstrings"}
    kinds = {path.stem: load_instructions(path)["kind"] for path in paths}
    assert kinds["alpaca"] == "hub" and math.isfinite(load_instructions(paths[0])["max_tokens"])
    with pytest.raises(ValueError, match="no such definition of instructions"):
        load_instructions(tmp_path / "none.yaml")
