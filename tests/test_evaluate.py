"""The adapter against a loop over tokens; tasks, local and real, through the harness itself."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.registry import get_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tiny_run import END_OF_TEXT, SEQUENCE, VOCABULARY, TinyCorpus, tiny_model, tiny_run, write_corpus, write_run

from moe import benchmarks, evaluate, probe, scoring, validate
from moe.finished import write_csv
from moe.harness import Rerouted
from moe.routers import ROUTERS
from moe.tasks import wanted_tasks

EVERY = ["none", *ROUTERS]
LIMITS = {"length": SEQUENCE, "batch_tokens": 100}
tokens_of = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3 * SEQUENCE)


def adapter(router="topk"):
    return Rerouted(tiny_model(router), TinyCorpus(), **LIMITS)


def requests(kind, *arguments):
    return [Instance(kind, {}, argument, 0) for argument in arguments]


@torch.no_grad()
def next_token(model, seen, said=0):
    """Log-probabilities after the last SEQUENCE tokens seen, of which the last `said` follow the prompt."""
    seen = seen[-SEQUENCE:]
    prompts_B = torch.tensor([max(1, len(seen) - said)])
    return model(torch.tensor([seen]), prompts_B=prompts_B)[0, -1].double().log_softmax(-1)


def loop_score(model, context, continuation):
    """One forward pass a token; each with the context that its piece of the continuation leaves it."""
    total, greedy = 0.0, True
    for start in range(0, len(continuation), SEQUENCE):
        piece = continuation[start : start + SEQUENCE]
        seen = (context + continuation[:start])[-(SEQUENCE + 1 - len(piece)) :]
        for place, token in enumerate(piece):
            logprobs = next_token(model, seen, place)
            total += logprobs[token].item()
            greedy &= logprobs.argmax().item() == token
            seen = seen + [token]
    return total, greedy


@given(tokens_of, tokens_of, st.integers(1, 20))
def test_pieces_score_each_token_once_and_fit_the_model(context, continuation, length):
    cut = list(scoring.pieces(context, continuation, length))
    assert [token for _, targets in cut for token in targets] == continuation
    for tokens, targets in cut:
        assert len(targets) <= len(tokens) <= length
        assert tokens[len(tokens) - len(targets) + 1 :] == targets[:-1]


@given(tokens_of, st.integers(1, 20))
def test_pieces_of_a_text_are_the_rolling_windows_of_the_harness(tokens, length):
    windows = get_rolling_token_windows(tokens, END_OF_TEXT, length, context_len=1)
    theirs = [make_disjoint_window(window) for window in windows]
    ours = list(scoring.pieces([END_OF_TEXT], tokens, length))
    assert [targets for _, targets in ours] == [targets for _, targets in theirs]
    assert [i[: len(i) - len(t) + 1] for i, t in ours] == [context for context, _ in theirs]


@pytest.mark.parametrize("router", EVERY)
@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(tokens_of, tokens_of), min_size=1, max_size=6))
def test_scores_of_a_batch_are_those_of_a_loop_over_tokens(router, pairs):
    model = tiny_model(router)
    scores = scoring.score(model, pairs, **LIMITS)
    for (total, greedy), pair in zip(scores, pairs, strict=True):
        expected, expected_greedy = loop_score(model, *pair)
        assert total == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert greedy == expected_greedy


def test_what_the_model_would_say_is_greedy_and_anything_else_is_not():
    model, context = tiny_model(), [1, 2, 3]
    said = scoring.generate(model, [context], stop=lambda _: False, tokens=5, **LIMITS)[0]
    other = said[:4] + [(said[4] + 1) % VOCABULARY]
    scores = scoring.score(model, [(context, said), (context, other), (context, said[:2])], **LIMITS)
    assert [greedy for _, greedy in scores] == [True, False, True]


def test_choices_of_one_token_share_a_forward_pass_and_equal_requests_are_computed_once():
    model, passes = tiny_model(), []
    model.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    pairs = [([5, 6, 7], [token]) for token in range(50)] * 2
    assert len(scoring.score(model, pairs, **LIMITS)) == 100
    assert passes == [1]
    ours = adapter()
    ours.model.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    asked = requests("loglikelihood", ("a cat", " sat"), ("a cat", " sat"), ("a dog", " sat"))
    first = ours.loglikelihood(asked)
    assert passes == [1, 2] and first[0] == first[1]
    assert ours.loglikelihood(asked) == first and passes == [1, 2]


def test_the_head_is_made_for_the_wanted_places_alone():
    model, rows = tiny_model(), []
    model.head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    scoring.score(model, [([1, 2, 3, 4], [5]), ([6, 7], [8, 9]), ([6, 7], [8])], **LIMITS)
    assert sum(rows) == 1 + 2 + 1  # and [6, 7] is another input than [6, 7, 8]
    rows.clear()
    scoring.generate(model, [[1, 2, 3], [4]], stop=lambda _: False, tokens=2, **LIMITS)
    assert rows == [2, 2]


def test_ids_that_no_text_has_are_never_the_greedy_ones():
    model = tiny_model()
    with torch.no_grad():
        model.head.weight[200:] *= 100
    said = scoring.generate(model, [[1], [2]], stop=lambda _: False, tokens=8, vocabulary=200, **LIMITS)
    assert max(map(max, said)) < 200


@pytest.mark.parametrize("context", ["", "  ", "the cat", "a context that is longer than the model"])
@pytest.mark.parametrize("continuation", [" sat", " sat, long after the end of the model's sequence"])
def test_loglikelihood_of_a_text(context, continuation):
    ours = adapter()
    ((total, greedy),) = ours.loglikelihood(requests("loglikelihood", (context, continuation)))
    blank = context[len(context.rstrip()) :] if context else ""
    seen = list(context.rstrip().encode()) or [END_OF_TEXT]
    expected = loop_score(ours.model, seen, list((blank + continuation).encode()))
    assert (total, greedy) == (pytest.approx(expected[0], rel=1e-5), expected[1])


@pytest.mark.parametrize("router", ["topk", "lory"])
def test_rolling_is_the_sum_of_its_windows_each_token_once(router):
    ours, text = adapter(router), "a text of more than forty bytes, scored in windows"
    (total,) = ours.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    tokens, expected = list(text.encode()), 0.0
    for inputs, targets in get_rolling_token_windows(tokens, END_OF_TEXT, SEQUENCE, 1):
        with torch.no_grad():
            logprobs = ours.model(torch.tensor([inputs]))[0].double().log_softmax(-1)
        rows = range(len(inputs) - len(targets), len(inputs))
        expected += sum(logprobs[r, t].item() for r, t in zip(rows, targets, strict=True))
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("router", EVERY)
def test_generation_is_the_loop_of_the_most_likely_token(router):
    ours = adapter(router)
    texts = ["", "a", "the cat sat on", "a context that is longer than the model"]
    said = ours.generate_until(requests("generate_until", *((t, {"until": [], "max_gen_toks": 20}) for t in texts)))
    for text, answer in zip(texts, said, strict=True):
        seen, expected = list(text.encode()) or [END_OF_TEXT], []
        while len(expected) < 20:
            token = next_token(ours.model, seen + expected, len(expected)).argmax().item()
            if token == END_OF_TEXT:
                break
            expected.append(token)
        assert answer == ours.tokenizer.decode(expected)


def test_generation_stops_at_the_first_of_its_ends():
    ours = adapter()
    whole = ours.generate_until(requests("generate_until", ("the cat", {"until": [], "max_gen_toks": 24})))[0]
    end = whole[5:7]
    stopped = ours.generate_until(requests("generate_until", ("the cat", {"until": ["\0\0", end]})))
    assert stopped == [whole[: whole.index(end)]]
    with pytest.raises(ValueError, match="do_sample"):
        ours.generate_until(requests("generate_until", ("a", {"do_sample": True})))


def write_local_tasks(folder, documents=12):
    """Data of the three local tasks, made up."""
    lines = {
        "local_last_word": lambda i: {"context": f"{i} cats sat on the", "word": f"[mat{i}]"},
        "local_best_ending": lambda i: {
            "context": f"{i} cats sat",
            "endings": ["on a mat", "in", f"{i}", "by the sea"],
            "label": i % 4,
        },
        "local_cloze": lambda i: {"passage": f"{i} cats", "statement": "cats", "label": i % 2},
    }
    (folder / "tasks").mkdir(parents=True)
    for task, line in lines.items():
        text = "".join(json.dumps(line(i)) + "\n" for i in range(documents))
        (folder / "tasks" / f"{task}.jsonl").write_text(text)
    return {"local": list(lines)}


def test_local_tasks_are_scored_as_their_definitions_say(tmp_path):
    tasks = write_local_tasks(tmp_path)
    run = tiny_run("rmoe")
    wanted = wanted_tasks(tasks, tmp_path, {}, required=True)
    scores, samples = evaluate.evaluate(run, wanted)
    assert [(row["task"], row["metric"]) for row in scores[: len(scores) // 2]] == [
        ("local_last_word", "perplexity"),
        ("local_last_word", "acc"),
        ("local_best_ending", "acc"),
        ("local_best_ending", "acc_norm"),
        ("local_cloze", "acc"),
    ]
    model, rows = run.model("5B"), {(r["snapshot"], r["task"], r["metric"]): r for r in scores}
    right = 0
    for line in (tmp_path / "tasks" / "local_best_ending.jsonl").read_text().splitlines():
        document = json.loads(line)
        said = [
            loop_score(model, list(document["context"].encode()), list(f" {ending}".encode()))[0]
            for ending in document["endings"]
        ]
        right += max(range(4), key=said.__getitem__) == document["label"]
    acc = rows["5B", "local_best_ending", "acc"]
    assert acc["value"] == right / 12 and acc["documents"] == 12 and acc["shots"] == 0
    logprobs = [
        loop_score(model, list(f"{i} cats sat on the".encode()), list(f" [mat{i}]".encode()))[0] for i in range(12)
    ]
    perplexity = rows["5B", "local_last_word", "perplexity"]["value"]
    assert perplexity == pytest.approx(torch.tensor(logprobs).mean().neg().exp().item(), rel=1e-4)
    for row in scores:
        key = ("snapshot", "task", "metric")
        values = [s["value"] for s in samples if all(s[k] == row[k] for k in key)]
        assert len(values) == row["documents"]
        if row["metric"].startswith("acc"):
            assert row["stderr"] == pytest.approx(mean_stderr(values))
            assert row["value"] == pytest.approx(sum(values) / len(values))


def test_a_metric_may_be_asked_for_and_a_limit_set_and_files_never_change(tmp_path):
    write_local_tasks(tmp_path)
    wanted = wanted_tasks({"local": ["local_last_word/acc"]}, tmp_path, {}, required=True)
    written = []
    for name in "ab":
        scores, samples = evaluate.evaluate(tiny_run(), wanted, limit=5)
        assert {(row["metric"], row["documents"]) for row in scores} == {("acc", 5)}
        write_csv(tmp_path / name, evaluate.COLUMNS, scores)
        write_csv(tmp_path / f"{name}s", evaluate.SAMPLE_COLUMNS, samples)
        written.append([(tmp_path / f).read_bytes() for f in (name, f"{name}s")])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"local": ["local_last_wrod"]}, "'local_last_wrod' unknown; did you mean 'local_last_word'"),
        ({"benchmark": ["arc_esay/acc"]}, "'arc_esay' unknown; did you mean 'arc_easy'"),
        ({"locals": ["local_cloze"]}, "'locals' unknown; did you mean 'local'"),
        ({"local": ["local_cloze"]}, "local_cloze.jsonl does not exist"),
        ({"benchmark": ["race/acc"]}, "race is required, but its data EleutherAI/race"),
    ],
)
def test_wrong_tasks_are_an_error_of_one_sentence(tmp_path, tasks, message):
    with pytest.raises(ValueError, match=message):
        wanted_tasks(tasks, tmp_path, {"mirror": tmp_path}, required=True)


def test_a_wrong_metric_and_broken_data_are_errors_of_one_sentence(tmp_path):
    write_local_tasks(tmp_path)
    wanted = wanted_tasks({"local": ["local_cloze/ac"]}, tmp_path, {}, required=True)
    with pytest.raises(ValueError, match="no metric 'ac'; did you mean 'acc'"):
        evaluate.evaluate(tiny_run(), wanted)
    (tmp_path / "tasks" / "local_cloze.jsonl").write_text('{"passage": \n')
    with pytest.raises(ValueError, match=r"local_cloze.*not readable"):
        evaluate.evaluate(tiny_run(), wanted)


def test_a_benchmark_without_data_is_left_out_with_a_note(tmp_path, capsys):
    asked = {"benchmark": ["race/acc", "sciq/acc"]}
    assert wanted_tasks(asked, tmp_path, {"mirror": tmp_path}, required=False) == []
    assert "note: race is left out" in capsys.readouterr().err


def every_definition():
    """(benchmark, task, file) of each; the first and the last of those that have many."""
    for name in benchmarks.BENCHMARKS:
        found = list(benchmarks.definitions(name).items())
        yield from ((name, *one) for one in dict([found[0], found[-1]]).items())


@pytest.mark.parametrize(("name", "task", "path"), every_definition())
def test_the_list_of_benchmarks_agrees_with_the_harness(name, task, path):
    lines = {}
    while path:  # what a file does not say, the file that it includes says
        text = path.read_text().replace("!function ", "")
        ours = yaml.safe_load(text)
        lines = ours | lines
        path = path.parent / ours["include"] if "include" in ours else None
    assert lines["task"] == task
    assert lines["dataset_path"] == benchmarks.BENCHMARKS[name].data


def write_hub(folder, name, configs, **splits):
    """A data set of the hub with one parquet file a split, the same in every configuration."""
    place, lines = folder / name, ["---", "configs:"]
    place.mkdir(parents=True)
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), place / f"{split}.parquet")
    for config in configs:
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [line for s in splits for line in (f"  - split: {s}", f"    path: {s}.parquet")]
    (place / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.mark.slow
def test_mmlu_is_the_mean_over_all_subjects_documents_and_gsm8k_reads_strictly(tmp_path):
    parts = benchmarks.definitions("mmlu")
    assert len(parts) == 57
    subjects = [name.removeprefix("mmlu_") for name in parts]
    row = {"question": "one?", "choices": ["a", "b", "c", "d"]}
    questions = [row | {"answer": n, "subject": "x"} for n in (0, 1, 2)]
    write_hub(tmp_path, "cais/mmlu", subjects, test=questions, dev=questions)
    sums = [{"question": f"{n} and 1?", "answer": f"Add.\n#### {n + 1}"} for n in range(8)]
    write_hub(tmp_path, "openai/gsm8k", ["main"], train=sums, test=sums[:2])
    asked = {"benchmark": ["mmlu/acc", "gsm8k/exact_match"]}
    wanted = wanted_tasks(asked, tmp_path, {"mirror": tmp_path}, required=True)
    scores, samples = evaluate.evaluate(one_snapshot(tiny_run()), wanted, limit=2)
    found = {score["task"]: score for score in scores}
    assert set(found) == {*parts, "mmlu", "gsm8k"}
    assert found["mmlu"]["documents"] == 2 * 57 and found["mmlu"]["shots"] == 0 and found["gsm8k"]["shots"] == 5
    assert found["mmlu"]["value"] == pytest.approx(sum(found[part]["value"] for part in parts) / 57)
    assert {sample["task"] for sample in samples} == {"mmlu", "gsm8k"} and len(samples) == 2 * 57 + 2
    assert found["gsm8k"]["value"] in (0, 0.5, 1) and found["gsm8k"]["documents"] == 2


def one_snapshot(run):
    return run._replace(snapshots=run.snapshots[:1])


MIRROR = Path(os.environ.get("REROUTED_DATA", "nowhere")) / "mirror"
DOCUMENTS = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "boolq": 3270,
    "hellaswag": 1000,  # of the mirror; the benchmark has 10,042
    "lambada_openai": 5153,
    "piqa": 1838,
}


@pytest.mark.skipif(not MIRROR.is_dir(), reason="REROUTED_DATA/mirror is not there")
def test_the_real_tasks_of_a_mirror_are_scored_by_their_own_definitions(tmp_path):
    metrics = [f"{task}/acc" for task in DOCUMENTS] + ["hellaswag/acc_norm", "piqa/acc_norm"]
    asked = {"benchmark": [*metrics, "race/acc", "sciq/acc"]}
    wanted = wanted_tasks(asked, tmp_path, {"mirror": MIRROR, "hub": None}, required=False)
    assert {task.task for task in wanted} == set(DOCUMENTS)
    loaded = evaluate.load_tasks(wanted, tmp_path)
    assert {name: len(task.eval_docs) for name, task in loaded.items()} == DOCUMENTS
    scores, samples = evaluate.evaluate(tiny_run(), wanted, limit=3)
    assert {row["source"] for row in scores} == {"mirror"}
    assert len(scores) == 2 * 8 and len(samples) == 3 * len(scores)
    assert all(0 <= row["value"] <= 1 for row in scores)


class FakeHub:
    """A data set of one file and some code, copied as from the hub."""

    content, copied = b"rows", []

    def __init__(self, name, revision, kind):
        self.copied.append(revision)
        digest = hashlib.sha256(b"rows").hexdigest()
        self.files = {"data/test.parquet": {"bytes": 4, "sha256": digest}, "load.py": {"bytes": 1}}

    def copy(self, path, folder):
        self.copied.append(path)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(self.content)


def test_fetching_pins_revisions_checks_files_and_makes_a_mirror(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "Hub", FakeHub)
    monkeypatch.setattr(benchmarks, "current_revision", lambda name: "a" * 40)
    assert benchmarks.main(["sciq", "race", "--output", str(tmp_path)]) == 0
    pinned = benchmarks.BENCHMARKS["sciq"].revision
    assert FakeHub.copied == [pinned, "data/test.parquet", "a" * 40, "data/test.parquet"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["allenai/sciq"]["revision"] == pinned
    place = {"mirror": None, "hub": tmp_path}
    assert benchmarks.locate("sciq", place) == ("hub", tmp_path / "allenai/sciq")
    FakeHub.copied.clear()
    monkeypatch.setattr(benchmarks, "current_revision", lambda name: "b" * 40)
    benchmarks.fetch(["race"], tmp_path)
    assert FakeHub.copied == ["a" * 40]  # the first fetch pinned it, and its file is there
    (tmp_path / "allenai/sciq/data/test.parquet").write_bytes(b"altered")
    monkeypatch.setattr(FakeHub, "content", b"other")
    with pytest.raises(ValueError, match=r"test.parquet: SHA-256 .*, expected"):
        benchmarks.fetch(["sciq"], tmp_path)
    assert not (tmp_path / "allenai/sciq/data/test.parquet").exists()


COMMANDS = {  # first file -> the command, its options with a place each, and the other files
    "validation.csv": (
        validate.main,
        {"--output": "validation.csv", "--windows-output": "validation_windows.csv"},
        ["validation_windows.csv"],
    ),
    "domain_losses.csv": (validate.main, {"--domains-output": "domain_losses.csv"}, []),
    "scores.csv": (evaluate.main, {"--output": "scores.csv", "--samples": "samples.csv"}, ["samples.csv"]),
    "routing.csv": (
        probe.main,
        {"--output": "."},
        [f"{name}.csv" for name in ("token_activity", "top_tokens", "score_statistics", "score_entropy")]
        + ["mutual_information.csv", "weights.csv"],
    ),
}


def places(options, folder):
    return [text for option, place in options.items() for text in (option, str(folder / place))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a finished run and of its corpus."""
    folder = tmp_path_factory.mktemp("results")
    write_run(folder / "run", write_corpus(folder / "corpus"))
    return folder / "run", folder / "corpus"


@pytest.mark.parametrize("output", COMMANDS)
def test_a_command_reads_a_run_and_writes_the_same_files_again(folders, tmp_path, capsys, output):
    command, options, others = COMMANDS[output]
    files, written = [output, *others], []
    for name in "ab":
        (tmp_path / name).mkdir()
        assert command([*map(str, folders), *places(options, tmp_path / name)]) == 0, capsys.readouterr().err
        written.append([(tmp_path / name / file).read_bytes() for file in files])
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == sorted(files)
    assert written[0] == written[1]
    if output == "scores.csv":
        assert [line.split(",")[3:5] for line in written[0][0].decode().splitlines()[1:]] == [
            ["local_last_word", "acc"],
            ["local_cloze", "acc"],
        ]
        assert "race is left out" in capsys.readouterr().err


@pytest.mark.parametrize("output", COMMANDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: ["--snapshot", "55B"], "no snapshot '55B'; did you mean '5B'?"),
        (lambda run: (run / "done.json").unlink(), "done.json does not exist: is it trained?"),
        (lambda run: (run / "snapshots/5B.safetensors").write_bytes(b"cut"), "truncated or altered"),
        (
            lambda run: (run / "done.json").write_text('{"data": "other", "snapshots": {}}'),
            "the run was trained on a corpus with fingerprint other, but",
        ),
    ],
    ids=["snapshot", "unfinished", "altered", "corpus"],
)
def test_a_wrong_run_ends_with_2_and_one_sentence(folders, tmp_path, capsys, output, change, message):
    shutil.copytree(folders[0], tmp_path / "run")
    extra = change(tmp_path / "run")
    command, options, _ = COMMANDS[output]
    arguments = [str(tmp_path / "run"), str(folders[1]), *places(options, tmp_path)]
    assert command([*arguments, *(extra if isinstance(extra, list) else [])]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / output).exists()


def test_the_harness_can_make_the_adapter_by_its_name(folders):
    made = get_model("rerouted").create_from_arg_string(
        f"run={folders[0]},corpus={folders[1]},snapshot=5B", {"device": "cpu"}
    )
    ((total, _),) = made.loglikelihood(requests("loglikelihood", ("a", " river")))
    expected, _ = loop_score(tiny_model("rmoe"), list(b"a"), list(b" river"))
    assert total == pytest.approx(expected, rel=1e-5)


def test_an_unknown_benchmark_to_fetch_ends_with_2_and_one_sentence(tmp_path, capsys):
    assert benchmarks.main(["scqi", "--output", str(tmp_path)]) == 2
    assert "did you mean 'sciq'" in capsys.readouterr().err
