"""Laws of windows: what training reads is a pure function of (seed, step)."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.data import Windows, domain_windows, held_out
from moe.data.windows import permute


class Tokens:
    """A corpus of the numbers 0, 1, 2, …"""

    folder = Path("numbers")

    def __init__(self, count):
        self.count = count

    def tokens(self, split):
        return np.arange(self.count, dtype=np.uint32)


sizes = st.integers(1, 300)
LAW = settings(deadline=None, max_examples=25)  # no deadline: machines are busy


@LAW
@given(size=sizes, seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_an_order_is_a_permutation(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, (seed, epoch))) == list(range(size))


@LAW
@given(tokens=st.integers(20, 400), sequence=st.integers(1, 9), batch=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_epoch_visits_every_window_once(tokens, sequence, batch, seed):
    windows = Windows(Tokens(tokens), "train", sequence, batch, seed)
    steps = 3 * -(-len(windows) // batch)
    seen = np.concatenate([windows.at(step) for step in range(steps)])
    firsts = list(range(0, len(windows) * sequence, sequence))
    for epoch in range(2):
        rows = seen[epoch * len(windows) : (epoch + 1) * len(windows)]
        assert sorted(rows[:, 0]) == firsts
    assert (np.diff(seen, axis=1) == 1).all(), "a window is consecutive text"
    assert seen.dtype == np.int64 and seen.shape[1] == sequence + 1


@LAW
@given(step=st.integers(0, 10**6), parts=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers(0, 99))
def test_the_ranks_in_order_make_the_batch(step, parts, seed):
    windows = Windows(Tokens(500), "train", 3, 12, seed)
    whole = np.concatenate([windows.at(step, rank, parts) for rank in range(parts)])
    np.testing.assert_array_equal(whole, windows.at(step))
    np.testing.assert_array_equal(whole, Windows(Tokens(500), "train", 3, 12, seed).at(step))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(Windows(Tokens(1000), "train", 4, 1, seed).order(np.arange(249) + 249 * epoch))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_the_order_is_the_one_it_has_always_been():
    """A new order would make old runs unrepeatable: change these numbers only on purpose."""
    assert permute(np.arange(10), 10, (0, 0)).tolist() == [0, 5, 3, 7, 6, 1, 9, 8, 4, 2]
    assert permute(np.arange(10), 10, (1, 0)).tolist() == [1, 9, 5, 8, 2, 7, 4, 0, 3, 6]


def test_an_order_mixes_far_apart_windows():
    order = permute(np.arange(10_000), 10_000, (0, 0))
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05


@LAW
@given(tokens=st.integers(20, 400), sequence=st.integers(1, 9), limit=st.integers(1, 50))
def test_held_out_windows_come_once_in_order(tokens, sequence, limit):
    every = list(held_out(Tokens(tokens), "valid", sequence))
    assert [row[0] for row in every] == list(range(0, (tokens - 1) // sequence * sequence, sequence))
    some = [int(row[0]) for row in held_out(Tokens(tokens), "valid", sequence, limit=limit)]
    assert len(some) == min(limit, len(every)) and some == sorted(set(some))
    assert set(some) <= {int(row[0]) for row in every}


def test_a_batch_takes_less_than_a_millisecond():
    windows = Windows(Tokens(10**6), "train", 64, 16, 0)
    begin = time.process_time()
    for step in range(200):
        windows.at(step)
    assert (time.process_time() - begin) / 200 < 1e-3


def test_a_corpus_of_a_hundred_billion_tokens_needs_no_memory():
    order = permute(np.arange(512) + 10**8 - 512, 10**8, (0, 0))
    assert len(set(order.tolist())) == 512 and order.max() < 10**8


def test_too_short_a_split_and_an_uneven_batch_are_named():
    with pytest.raises(ValueError, match="split train has 5 tokens, fewer than one window of 8 \\+ 1"):
        Windows(Tokens(5), "train", 8, 1, 0)
    with pytest.raises(ValueError, match="batch 5 is not divisible among rank 0 of 2 ranks"):
        Windows(Tokens(500), "train", 8, 5, 0).at(0, 0, 2)


class Documents(Tokens):
    """Documents of the numbers 0, 1, 2, … in three domains; the last has too little text."""

    domains = ["a", "b", "c"]
    starts = np.array([0, 5, 9, 10, 17, 18, 30])
    of = np.array([0, 1, 0, 1, 2, 0], dtype=np.uint16)

    def documents(self, split):
        return self.starts, self.of


@pytest.mark.parametrize("sequence", [2, 3])
def test_windows_of_a_domain_are_its_own_documents_one_after_another(sequence):
    corpus = Documents(30)
    own = {"a": [*range(5), 9, *range(18, 30)], "b": [*range(5, 9), *range(10, 17)]}
    found = dict(domain_windows(corpus, "test", sequence))
    assert set(found) == {"a", "b"}, "a domain shorter than a window is left out"
    for domain, windows in found.items():
        assert len(windows) == (len(own[domain]) - 1) // sequence
        for i, window in enumerate(windows):
            assert window.tolist() == own[domain][i * sequence : i * sequence + sequence + 1]
    limited = dict(domain_windows(corpus, "test", sequence, 3))
    assert [w.tolist() for w in limited["a"]] == [found["a"][i * len(found["a"]) // 3].tolist() for i in range(3)]
