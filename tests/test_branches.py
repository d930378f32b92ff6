"""Texts that begin alike: every one is found again in its row, and scored as if it were alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluate import EVERY, LIMITS, loop_score
from tiny_run import SEQUENCE, tiny_model

from moe import scoring
from moe.branches import alike, branches_of, grow

texts_of = st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12)


@given(texts_of, st.integers(1, 30))
def test_every_text_stands_in_one_row_and_can_be_read_there(texts, most):
    trees = grow(texts, most)
    found = [text for tree in trees for text in tree.texts]
    assert len(found) == len(texts) and set(found) == texts
    for tree in trees:
        row = tree.row
        assert [tuple(row[place] for place in path) for path in tree.paths] == tree.texts
        assert len(row) == tree.shared + sum(len(text) - tree.shared for text in tree.texts)
        if len(tree.texts) > 1:
            assert len(row) <= most and 2 * tree.shared >= max(map(len, tree.texts))


def test_what_is_shared_is_counted_from_the_beginning():
    assert alike((1, 2, 3), (1, 2, 4)) == 2 and alike((1, 2), (1, 2, 4)) == 2 and alike((1,), (2,)) == 0
    (tree,) = grow([(7, 8, 9, 1), (7, 8, 9, 2, 3), (7, 8, 9)], 20)
    assert tree.row == [7, 8, 9, 1, 2, 3] and tree.shared == 3
    branches = branches_of([tree], 7, "cpu")
    assert branches.positions_BS.tolist() == [[0, 1, 2, 3, 3, 4, 0]]
    seen = [[place for place in range(7) if row[place]] for row in branches.seen_BSS[0].tolist()]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 4, 5], [0, 1, 2, 6]]


@pytest.mark.parametrize("router", EVERY)
@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=6, max_size=9), st.data())
def test_choices_share_the_tokens_of_their_question_and_no_score_changes(router, context, data):
    ending = st.lists(st.integers(0, 200), min_size=1, max_size=SEQUENCE - 10)
    endings = data.draw(st.lists(ending, min_size=2, max_size=4, unique_by=tuple))
    pairs = [(context, said) for said in endings] + [([201], [5, 6])]
    model, read = tiny_model(router), []
    hook = model.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    scores = scoring.score(model, pairs, **LIMITS)
    hook.remove()
    alone = len({tuple(context + said[:-1]) for said in endings})
    assert sum(read) == 1 + (alone if router == "lory" else 1)  # Lory routes a text by what stands in it
    for (total, greedy), pair in zip(scores, pairs, strict=True):
        expected, expected_greedy = loop_score(model, *pair)
        assert total == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert greedy == expected_greedy


def test_rows_that_share_nothing_are_read_as_ever():
    model, seen = tiny_model(), []
    model.register_forward_pre_hook(lambda *given: seen.append(given[2]), with_kwargs=True)
    scoring.score(model, [([1, 2, 3, 4], [5]), ([6, 7, 8, 9], [1])], **LIMITS)
    assert not any("branches" in given for given in seen)
    seen.clear()
    scoring.score(model, [([1, 2, 3, 4], [5, 6]), ([1, 2, 3, 4], [7, 8])], **LIMITS)
    assert [len(given["branches"].positions_BS) for given in seen] == [1]
