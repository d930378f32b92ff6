"""Running text: streams that follow the text, caches that survive a kill, the best weights, losses with a memory."""

import csv
import math
import signal

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import (
    SCHEDULE,
    assert_same_to_rounding,
    assert_same_to_the_bit,
    checkpoint_folder,
    interrupted,
    numbers,
    trained,
)
from tiny_run import write_corpus

from moe import probe, streaming, validate
from moe.best import Best
from moe.data import Corpus, Streams
from moe.finished import open_run
from moe.span import SpanDecoder

SPAN = dict(vocabulary=257, width=16, layers=2, heads=2, expert_width=16, span=12, dropout=0.1)
TRAINING = SCHEDULE | dict(streams=True, keep="best", validate_every=3, validate_windows=12, learning_rate=5e-2)
TRAINING |= dict(final_learning_rate=5e-2, clip=0.0, weight_decay=0.0)


class Text:
    """A split whose token at each place is the place."""

    folder = "made up"

    def __init__(self, length):
        self.length = length

    def tokens(self, split):
        return np.arange(self.length)


@given(length=st.integers(30, 400), sequence=st.integers(1, 12), batch=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_streams_follow_the_text_and_start_anew_at_its_end(length, sequence, batch, seed):
    if length // batch <= sequence:
        return
    streams, own = Streams(Text(length), "train", sequence, batch, seed), length // batch
    before, passes = None, 0
    for step in range(3 * len(streams)):
        blocks = streams.at(step)
        assert blocks.shape == (batch, sequence + 1) and (np.diff(blocks) == 1).all()
        assert (blocks // own == np.arange(batch)[:, None]).all()  # each in its own stream
        if streams.starts(step):
            offset = blocks[0, 0]
            assert offset == 0 if step == 0 else offset < sequence
            assert before is None or before[0, -1] + sequence >= own  # no whole block was left
            passes += 1
        else:
            assert (blocks[:, 0] == before[:, -1]).all()
        before = blocks
    assert passes >= 3


def test_a_step_depends_on_the_seed_alone_and_ranks_share_it():
    one, other = (Streams(Text(200), "train", 7, 4, 3) for _ in range(2))
    assert (one.at(50) == other.at(50)).all() and one.starts(0)
    parts = [other.at(50, rank, 2) for rank in range(2)]
    assert (np.concatenate(parts) == one.at(50)).all()
    with pytest.raises(ValueError, match="not divisible"):
        one.at(0, 0, 3)
    with pytest.raises(ValueError, match="fewer than a block of 60"):
        Streams(Text(200), "train", 60, 4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "corpus"
    write_corpus(folder)
    return folder


def write_spec(folder, router="rmoe", **training):
    folder.mkdir(parents=True, exist_ok=True)
    model = SPAN | {"kind": "span", "experts": 4, "top_k": 2, "router": {"name": router, "state": 8}}
    spec = dict(run="tiny", scale="test", setup="tiny", seed=0, fingerprint="0123456789abcdef")
    spec |= {"snapshots": {"all": 1.0, "half": 0.5}, "model": model, "training": TRAINING | training}
    (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    return trained(write_spec(tmp_path_factory.mktemp("undisturbed")), corpus)


def test_a_killed_training_goes_on_to_the_bit_with_what_it_remembered(undisturbed, corpus, tmp_path):
    folder = write_spec(tmp_path / "killed")
    interrupted(folder, corpus, 5, signal.SIGKILL)
    assert not (folder / "done.json").exists()
    trained(folder, corpus)
    assert_same_to_the_bit(undisturbed, folder)


def test_measuring_experts_and_gradients_leaves_what_is_remembered_alone(undisturbed, corpus, tmp_path):
    folder = write_spec(tmp_path / "watched", similarity_points=4, gradient_points=[0.1, 1.0], gradient_steps=3)
    rows = numbers(trained(folder, corpus))
    for plain, watched in zip(numbers(undisturbed), rows, strict=True):
        assert {key: watched[key] for key in plain} == plain  # with dropout, and a cache from step to step
    assert [int(row["step"]) for row in rows if row["router_gradient"]] == [1, 2, 3, 10, 11, 12]
    last = rows[-1]
    assert 0 < float(last["router_gradient"]) != float(last["router_gradient_lm"]) > 0


def test_micro_batches_and_ranks_change_rounding_alone(corpus, tmp_path):
    options = dict(learning_rate=5e-3, final_learning_rate=5e-3, steps=6)
    model = dict(dropout=0.0)  # drawn for each micro-batch
    folders = []
    for name, training, ranks in (("one", {}, 1), ("two", {"micro_batch": 2}, 1), ("ranks", {}, 2)):
        folder = write_spec(tmp_path / name, "smoe", **options, **training)
        spec = yaml.safe_load((folder / "run.yaml").read_text())
        spec["model"] |= model | {"router": {"name": "smoe", "balance": 0.0}}
        (folder / "run.yaml").write_text(yaml.safe_dump(spec))
        folders.append(trained(folder, corpus, ranks))
    for other in folders[1:]:
        assert_same_to_rounding(folders[0], other, 2e-3)


def test_the_learning_rate_is_constant_after_the_warm_up(undisturbed):
    rates = [float(row["learning_rate"]) for row in numbers(undisturbed)]
    assert rates[0] < rates[1] <= 5e-2 and set(rates[2:]) == {5e-2}


def test_the_snapshot_is_the_best_of_the_validations(undisturbed, corpus):
    losses = {int(row["step"]): float(row["valid_loss"]) for row in numbers(undisturbed) if row["valid_loss"]}
    assert list(losses) == [3, 6, 9, 12]
    run = open_run(undisturbed, corpus, device="cpu")
    for label, until in (("half", 6), ("all", 12)):
        best = min((step for step in losses if step <= until), key=losses.get)
        assert run.done["snapshots"][label]["step"] == best
        spec = {"sequence": TRAINING["sequence"], "windows": 12, "streams": 4, "micro_batch": 4}
        again = streaming.StreamValidation(run.model(label), run.corpus, **spec)(best // 3 - 1)
        assert again == pytest.approx(losses[best], rel=1e-6)
    assert not list(undisturbed.glob("snapshots/*/best-*"))


def test_the_best_so_far_is_found_again_and_old_ones_go(tmp_path):
    best, saved = Best(tmp_path), lambda path: path.write_text(path.name)
    record = tmp_path / "metrics.csv"
    rows = [{"step": step, "valid_loss": loss} for step, loss in enumerate([3.0, 2.0, "", 2.5, 1.0, 1.5], start=1)]
    with open(record, "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "valid_loss"])
        writer.writeheader()
        writer.writerows(rows)
    for row in rows[:4]:
        if row["valid_loss"]:
            best.validated(row, saved)
    assert best.step == 2
    best.prune()
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-00000002.safetensors"]
    best.validated(rows[4], saved)
    best.prune()  # the checkpoint before may still be gone back to
    assert len(list(tmp_path.glob("best-*"))) == 2
    other = Best(tmp_path)
    other.resume(record, 4)
    assert (other.step, other.loss) == (2, 2.0)
    other.copy(tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").read_text() == "best-00000002.safetensors"
    other.prune(last=True)
    assert not list(tmp_path.glob("best-*"))


def test_validation_and_test_read_eight_streams_with_the_cache(undisturbed, corpus, tmp_path):
    output, windows = tmp_path / "validation.csv", tmp_path / "windows.csv"
    arguments = [str(undisturbed), str(corpus), "--output", str(output), "--windows-output", str(windows)]
    assert not validate.main([*arguments, "--device", "cpu", "--snapshot", "all"])
    with output.open() as file:
        rows = {row["split"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"valid", "test"}
    run = open_run(undisturbed, corpus, device="cpu")
    model, sequence = run.model("all"), TRAINING["sequence"]
    for split, row in rows.items():
        tokens = torch.from_numpy(run.corpus.tokens(split).astype(np.int64))
        length = len(tokens) // 8
        blocks = (length - 1) // sequence
        texts = tokens[: 8 * length].view(8, length)[:, : blocks * sequence + 1]
        with torch.no_grad():  # the whole text at once, which the cache must not be told from
            log_probs = torch.cat([model(text[None, :-1]).log_softmax(-1) for text in texts])
        losses = -log_probs.gather(-1, texts[:, 1:, None])[..., 0].double()
        assert float(row["loss"]) == pytest.approx(losses.mean().item(), rel=1e-5)
        assert int(row["windows"]) == 8 * blocks
        assert float(row["perplexity"]) == pytest.approx(math.exp(losses.mean().item()), rel=1e-5)
        text_bytes = (texts[:, 1:] != 256).sum().item()  # the end of text stands for none
        assert float(row["bits_per_byte"]) == pytest.approx(losses.sum().item() / math.log(2) / text_bytes, rel=1e-5)
    with windows.open() as file:
        blocks = list(csv.DictReader(file))
    for split, row in rows.items():
        losses = [float(block["loss"]) for block in blocks if block["split"] == split]
        assert np.mean(losses) == pytest.approx(float(row["loss"]))


@pytest.mark.parametrize("router", ["none", "topk", "rmoe", "relu", "expert-choice", "lory"])
def test_several_blocks_are_read_in_one_pass_with_the_same_losses(router, monkeypatch):
    streams = Streams(Text(250), "valid", 8, 4)  # 7 blocks a pass of the text
    torch.manual_seed(0)
    sizes = dict(experts=4, top_k=2) if router != "none" else {}
    options = {"name": router} | ({"segment": 4} if router == "lory" else {})
    model = SpanDecoder(**SPAN, router=options, **sizes)
    model.eval()
    read = []
    model.register_forward_pre_hook(lambda module, inputs: read.append(tuple(inputs[0].shape)))

    def losses(tokens):
        read.clear()
        monkeypatch.setattr(streaming, "tokens_at_once", lambda device, vocabulary: tokens)
        return torch.stack(list(streaming.block_losses(model, streams, range(3, 17), micro_batch=2)))

    one_by_one = losses(16)
    assert set(read) == {(2, 8)} and len(read) == 2 * 14
    together = losses(48)
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=0)
    if router == "lory":  # segments of a block, and no further
        assert set(read) == {(2, 8)}
    else:  # 3 to 5, 6; 7 to 9, 10 to 12, 13; 14 to 16: never on over the end of the text
        assert [length // 8 for _, length in read[::2]] == [3, 1, 3, 3, 1, 3]


def test_the_probe_reads_the_running_text(undisturbed, corpus):
    run = open_run(undisturbed, corpus, device="cpu")
    layers, occurrences = probe.probe(run, "all")
    tokens, sequence = run.corpus.tokens("test").astype(np.int64), TRAINING["sequence"]
    length = len(tokens) // 8
    texts = tokens[: 8 * length].reshape(8, length)[:, : (length - 1) // sequence * sequence]
    routings = []
    with torch.no_grad():  # the whole text at once
        run.model("all")(torch.from_numpy(texts), routings=routings)
    assert occurrences["occurrences"].sum() == texts.size
    for table, routing in zip(layers, routings, strict=True):
        assert table["routed"].sum() == (routing.gates_TE > 0).sum() == 2 * texts.size
        by_expert = table.groupby("expert")["gate"].sum().reindex(range(4), fill_value=0.0)
        by_expert = torch.from_numpy(by_expert.to_numpy())
        torch.testing.assert_close(by_expert, routing.gates_TE.double().sum(0), rtol=1e-4, atol=1e-3)


def test_the_cache_is_emptied_where_the_text_starts_anew(corpus):
    streams = Streams(Corpus(corpus), "train", 16, 4)
    memories = streaming.Memories(streams, 2)
    assert memories.before(0) == [{"cache": []}] * 2
    torch.manual_seed(0)
    model = SpanDecoder(**SPAN, experts=4, top_k=2, router={"name": "smoe"})
    for further in memories.before(0):
        model(torch.zeros(2, 16, dtype=torch.long), **further)
    assert len(memories.before(1)[0]["cache"]) == 2
    assert memories.before(len(streams)) == [{"cache": []}] * 2


def test_a_checkpoint_holds_what_every_stream_remembers(corpus, tmp_path):
    folder = write_spec(tmp_path / "stopped")
    interrupted(folder, corpus, 5)
    (step, *_) = sorted(checkpoint_folder(folder).glob("step-*"))
    memories = streaming.Memories(Streams(Corpus(corpus), "train", 16, 4), 1)
    memories.load(step, 0, 1, torch.device("cpu"))
    assert [tuple(left.shape) for left in memories.caches[0]] == [(4, 12, 16)] * 2
