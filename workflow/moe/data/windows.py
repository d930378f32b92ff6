"""Batches of a split as pure functions: no state to save, nothing to restore on resume.

Window i of a split is tokens[i*S : i*S + S + 1] (S inputs and their targets, so the last token is the
first input of the next window). B: batch, S: sequence, W: windows of the split.
"""

import numpy as np

ROUNDS = 6  # of the Feistel network; Luby and Rackoff 1988 need 4 for a pseudorandom permutation


class Windows:
    """Training batches: every epoch visits every window once, in an order of its own.

    `at(step)` depends on (seed, step) alone. The order is a keyed permutation computed index by
    index, so a corpus of 10^8 windows costs no memory and no start-up.
    """

    def __init__(self, corpus, split, sequence, batch, seed):
        self.tokens = corpus.tokens(split)
        self.sequence, self.batch, self.seed = sequence, batch, seed
        self.windows = count_windows(corpus, split, sequence)
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected 1 or more")

    def __len__(self):
        return self.windows

    def at(self, step, rank=0, ranks=1):
        """Batch of a step, int64 [B/ranks, S+1]; the ranks' parts in order make the whole batch."""
        if self.batch % ranks or not 0 <= rank < ranks:
            raise ValueError(f"batch {self.batch} is not divisible among rank {rank} of {ranks} ranks")
        share = self.batch // ranks
        first = step * self.batch + rank * share
        windows = self.order(np.arange(first, first + share, dtype=np.int64))
        return _cut(self.tokens, windows, self.sequence)

    def order(self, draws):
        """Window index of each consecutive draw, int64, counted over all epochs from 0."""
        epochs, places = np.divmod(draws, self.windows)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            windows[of_epoch] = permute(places[of_epoch], self.windows, (self.seed, int(epoch)))
        return windows


def held_out(corpus, split, sequence, limit=None):
    """Yield windows int64 [S+1] of a split in order: all, or `limit` of them spread evenly over it.

    Spread, because files of one domain may follow one another and the first windows would show one.
    """
    windows = count_windows(corpus, split, sequence)
    tokens = corpus.tokens(split)
    count = windows if limit is None else min(limit, windows)
    for i in range(count):
        yield _cut(tokens, np.array([i * windows // count]), sequence)[0]


def domain_windows(corpus, split, sequence, limit=None):
    """Yield (domain, its windows int64 [W, S+1]) of a split: the documents of each domain, one after another.

    All windows, or `limit` of each domain, spread evenly over it; a domain shorter than one is left out.
    """
    tokens, (starts, domains) = corpus.tokens(split), corpus.documents(split)
    for number, domain in enumerate(corpus.domains):
        documents = np.flatnonzero(domains == number)
        ends = np.cumsum(starts[documents + 1] - starts[documents])
        windows = (int(ends[-1]) - 1) // sequence if len(ends) else 0
        if windows < 1:
            continue
        count = windows if limit is None else min(limit, windows)
        chosen = np.arange(count, dtype=np.int64) * windows // count
        places = chosen[:, None] * sequence + np.arange(sequence + 1)  # among the domain's own tokens
        document = np.searchsorted(ends, places, side="right")
        yield domain, tokens[starts[documents[document] + 1] - ends[document] + places].astype(np.int64)


def count_windows(corpus, split, sequence):
    """Windows W of a split; ValueError where it is shorter than one."""
    tokens = len(corpus.tokens(split))
    if sequence < 1:
        raise ValueError(f"sequence is {sequence}, expected 1 or more")
    if tokens <= sequence:
        raise ValueError(
            f"{corpus.folder}: split {split} has {tokens} tokens, fewer than one window of"
            f" {sequence} + 1: use more text or a shorter sequence"
        )
    return (tokens - 1) // sequence


def permute(places, size, key):
    """Bijection of range(size), drawn by `key` (whole numbers), applied to an int64 array.

    A Feistel network on the smallest even number of bits that holds `size`, walked until the value
    falls below `size` (Black and Rogaway 2002); at most 4 steps are expected.
    """
    half = max(1, -(-int(size - 1).bit_length() // 2))
    keys = np.random.SeedSequence([abs(int(k)) for k in key]).generate_state(ROUNDS, np.uint64)
    values = places.astype(np.uint64)
    walking = np.ones(len(values), dtype=bool)
    while walking.any():
        values[walking] = _feistel(values[walking], np.uint64(half), keys)
        walking = values >= size
    return values.astype(np.int64)


def _feistel(values, half, keys):
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << half | right


def _mix(values):
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _cut(tokens, windows, sequence):
    spans = windows[:, None] * sequence + np.arange(sequence + 1)
    return tokens[spans].astype(np.int64)
