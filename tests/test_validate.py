"""Validation: losses against a loop over tokens, bytes against the text, and a table that never changes."""

import math

import numpy as np
import pytest
import torch
from tiny_run import END_OF_TEXT, SEQUENCE, TEXTS, TinyCorpus, tiny_model, tiny_run
from tokenizers import Tokenizer, models

from moe import validate
from moe.data import held_out
from moe.data.tokenizer import Text, train_bpe
from moe.finished import write_csv
from moe.routers import ROUTERS

EVERY = ["none", *ROUTERS]


def loop_losses(model, tokens):
    """Loss of each target of each window by one forward pass a token: what a window is worth, said slowly."""
    losses = []
    for start in range(0, len(tokens) - SEQUENCE, SEQUENCE):
        for end in range(start + 1, start + SEQUENCE + 1):
            logits = model(torch.tensor([tokens[start:end].tolist()]))[0, -1].double()
            losses.append(-logits.log_softmax(-1)[int(tokens[end])].item())
    return losses


@pytest.mark.parametrize("router", EVERY)
def test_the_loss_is_that_of_a_model_that_sees_only_the_tokens_before(router):
    run = tiny_run(router)
    with torch.no_grad():
        losses = loop_losses(run.model("5B"), run.corpus.flat)
    rows, windows = validate.validate(run)
    assert rows[0]["windows"] == len(losses) // SEQUENCE
    if router == "lory":  # its first segment sees itself whole, a token of a loop only what came before
        losses = np.reshape(losses, (-1, SEQUENCE))[:, 4:]
        assert rows[0]["later_loss"] == pytest.approx(losses.mean(), rel=1e-5)
        return
    assert rows[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert "later_loss" not in rows[0]
    of_first = [row["loss"] for row in windows if row["snapshot"] == "5B"]
    assert of_first == pytest.approx(np.reshape(losses, (-1, SEQUENCE)).mean(1), rel=1e-5)


def test_losses_of_domains_are_those_of_their_own_windows():
    run = tiny_run("rmoe", windows=4)
    rows = validate.domain_losses(run)
    assert {(row["snapshot"], row["domain"]) for row in rows} == {
        (s, d) for s in ("5B", "10B") for d in ("prose", "code")
    }
    code = np.concatenate(
        [run.corpus.flat[a:b] for a, b in ((run.corpus.starts[i], run.corpus.starts[i + 1]) for i in (1, 3))]
    )
    with torch.no_grad():
        expected = np.reshape(loop_losses(run.model("10B"), code), (-1, SEQUENCE)).mean(1)
    found = [row["loss"] for row in rows if row["snapshot"] == "10B" and row["domain"] == "code"]
    assert len(found) == 2, "each of two domains gets its share of four windows"
    chosen = [i * len(expected) // 2 for i in range(2)]
    assert found == pytest.approx(expected[chosen], rel=1e-5)


@pytest.mark.parametrize("router", EVERY)
def test_a_window_does_not_care_about_later_tokens_or_other_windows(router):
    model = tiny_model(router)
    windows = torch.randint(0, 256, (5, SEQUENCE + 1), generator=torch.manual_seed(3))
    together = validate.window_losses(model, windows)
    alone = torch.cat([validate.window_losses(model, window[None]) for window in windows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    changed = windows.clone()
    changed[:, 9:] = 7
    with torch.no_grad():
        before, after = model(windows[:, :-1]), model(changed[:, :-1])
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=1e-4, atol=1e-4)


def test_units_agree_with_each_other_and_with_the_text():
    run = tiny_run()
    (row, _), _ = validate.validate(run)
    targets = run.corpus.flat[1 : 1 + row["windows"] * SEQUENCE]
    text = bytes(token for token in targets.tolist() if token != END_OF_TEXT)
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    bits = row["loss"] * len(targets) / math.log(2)
    assert row["bits_per_byte"] == pytest.approx(bits / len(text))


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_bytes_of_the_tokens_of_a_text_are_its_bytes(kind):
    corpus = TinyCorpus()
    if kind == "bpe":
        corpus.tokenizer = train_bpe([text for _, text in TEXTS], vocabulary=270)
        corpus.vocabulary = 270
    lengths = validate.token_bytes(corpus, "valid")
    for _, text in TEXTS:
        ids = corpus.tokenizer.encode(text)
        assert lengths[ids].sum() == len(text.encode())
        assert kind == "bytes" or len(ids) < len(text.encode())
    assert lengths[corpus.tokenizer.end_of_text] == 0


def test_other_tokenizers_count_the_mean_of_the_split():
    corpus = TinyCorpus()
    corpus.tokenizer = Text(Tokenizer(models.WordLevel({"猫": 0, "où": 1, "<e>": 2}, "<e>")), 2)
    corpus.vocabulary, corpus.manifest = 3, {"splits": {"valid": {"bytes": 50, "tokens": 20}}}
    assert validate.token_bytes(corpus, "valid").tolist() == [2.5] * 3


def test_a_limit_reads_windows_of_the_whole_split():
    _, every = validate.validate(tiny_run())
    rows, some = validate.validate(tiny_run(windows=3))
    assert [row["windows"] for row in rows] == [3, 3]
    losses = [row["loss"] for row in every if row["snapshot"] == "5B"]
    # Another number of windows is another shape of batch: equal to rounding.
    expected = [losses[i * len(losses) // 3] for i in range(3)]
    assert [row["loss"] for row in some][:3] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_places_are_where_the_held_out_windows_lie(limit):
    run = tiny_run()
    windows = held_out(run.corpus, "valid", SEQUENCE, limit)
    for places, window in zip(run.windows("valid", limit), windows, strict=True):
        assert run.corpus.flat[places].tolist() == window.tolist()


def test_two_validations_write_the_same_files(tmp_path):
    written = []
    for name in "ab":
        rows, windows = validate.validate(tiny_run("rmoe"))
        write_csv(tmp_path / name, validate.COLUMNS, rows)
        write_csv(tmp_path / f"{name}.windows", validate.WINDOW_COLUMNS, windows)
        written.append([(tmp_path / f"{name}{end}").read_bytes() for end in ("", ".windows")])
    assert written[0] == written[1]
    assert written[0][0].splitlines()[0].decode() == ",".join(validate.COLUMNS)


def test_a_split_shorter_than_a_window_is_an_error_of_one_sentence():
    with pytest.raises(ValueError, match="valid has 5 tokens, fewer than one window of 16"):
        validate.validate(tiny_run(corpus=TinyCorpus([(0, "four")])))


def test_expert_choice_is_validated_causally_and_as_it_was_trained():
    run = tiny_run("expert-choice")
    row = validate.validate(run)[0][0]
    model = run.model("5B")
    windows = torch.from_numpy(np.stack(list(run.windows("valid", None))))
    tokens = torch.from_numpy(run.corpus.flat.astype(np.int64))[windows]
    with torch.no_grad():
        causal = model(tokens[:, :-1], tokens[:, 1:])[0].item()
        leaky = model.train()(tokens[:, :-1], tokens[:, 1:])[0].item()
    assert row["loss"] == pytest.approx(causal, rel=1e-5) and row["leaky_loss"] == pytest.approx(leaky, rel=1e-5)
    assert causal != pytest.approx(leaky, rel=1e-4)
