"""Texts that begin alike, read as one row: what they share once, then the rest of each, which sees no other rest.

Letters: B rows, S positions of a row.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Branches(NamedTuple):
    """What a model that reads such rows has to know.

    positions_BS: the position of each token in its own text. seen_BSS: whether a token, the second letter, sees
    another, the third.
    """

    positions_BS: Tensor
    seen_BSS: Tensor


class Tree(NamedTuple):
    """Texts that share their first tokens, at least `shared` of each."""

    texts: list[tuple[int, ...]]
    shared: int

    @property
    def row(self) -> list[int]:
        """The tokens of the row."""
        return [*self.texts[0][: self.shared], *(token for text in self.texts for token in text[self.shared :])]

    @property
    def paths(self) -> list[list[int]]:
        """Where in the row the tokens of each text stand."""
        paths, end = [], self.shared
        for text in self.texts:
            rest = len(text) - self.shared
            paths.append([*range(self.shared), *range(end, end + rest)])
            end += rest
        return paths


def grow(texts: Iterable[tuple[int, ...]], most: int) -> list[Tree]:
    """All texts in trees: those of one share at least half of the longest, and make a row of at most `most` tokens.

    A text that shares less, or is longer, is a tree of its own.
    """
    trees: list[Tree] = []
    size = longest = 0  # of the last tree: tokens of its texts, tokens of the longest
    for text in sorted(texts):  # so that those that begin alike are neighbours
        if trees:
            last = trees[-1]
            shared, size, longest = alike(last.texts[0][: last.shared], text), size + len(text), max(longest, len(text))
            if 2 * shared >= longest and size - shared * len(last.texts) <= most:
                trees[-1] = Tree([*last.texts, text], shared)
                continue
        trees.append(Tree([text], len(text)))
        size = longest = len(text)
    return trees


def alike(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two texts share at their beginning."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def branches_of(trees: list[Tree], length: int, device: torch.device | str) -> Branches | None:
    """Of rows that are padded to `length`; None where no tree has a second text, so that all is as in any row."""
    if all(len(tree.texts) == 1 for tree in trees):
        return None
    positions, branch = [], []  # branch of a token: 0 for what is shared, then one a text; padding is in none
    for tree in trees:
        rests = [len(text) - tree.shared for text in tree.texts]
        empty = length - tree.shared - sum(rests)
        positions.append([*range(tree.shared), *(tree.shared + i for n in rests for i in range(n)), *[0] * empty])
        branch.append([0] * tree.shared + [k for k, n in enumerate(rests, start=1) for _ in range(n)] + [-1] * empty)
    branch_BS = torch.tensor(branch, device=device)
    ours_BSS = (branch_BS[:, None] == 0) | (branch_BS[:, None] == branch_BS[:, :, None])
    return Branches(torch.tensor(positions, device=device), ours_BSS.tril())
