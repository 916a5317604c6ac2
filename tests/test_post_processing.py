"""Dual softmax and QB-Norm: numbers worked by hand, slow loops, and what each query may see."""

import math

import numpy as np
import pytest

from modules.post_processing import ASSUMPTIONS, POST_PROCESSES, dual_softmax, querybank_normalize


def test_dual_softmax_by_hand():
    # temperature ln 3: column 0 has exp 3 and 1, shares 3/4 and 1/4; column 1 has equal scores, shares 1/2
    result = dual_softmax([[1, 2], [0, 2]], temperature=math.log(3))
    np.testing.assert_allclose(result, [[0.75, 1.0], [0.0, 1.0]])


def test_dual_softmax_moves_a_query_off_the_hub():
    """Item 0 is the best of both queries, but more so of query 0: query 1 goes over to item 1."""
    similarity = np.array([[0.9, 0.1], [0.8, 0.7]])
    assert similarity.argmax(axis=1).tolist() == [0, 0]
    assert dual_softmax(similarity, 100).argmax(axis=1).tolist() == [0, 1]


def test_dual_softmax_equals_a_slow_loop():
    similarity = np.random.default_rng(0).uniform(-1, 1, (7, 4)).astype(np.float32)
    result = dual_softmax(similarity, 5.0)
    for query in range(7):
        for item in range(4):
            column = [math.exp(5 * float(similarity[other, item])) for other in range(7)]
            expected = float(similarity[query, item]) * column[query] / sum(column)
            assert result[query, item] == pytest.approx(expected, rel=1e-6)


def test_small_shares_stay_apart():
    """Cosines differ by 2 at most: exp(-200) is 0 in float32, where all lesser scores would tie."""
    column = dual_softmax(np.array([[1.0], [-0.9], [-1.0]], dtype=np.float32), 100)[:, 0]
    assert len(set(column.tolist())) == 3 and np.all(column != 0)


def test_querybank_norm_by_hand():
    # beta ln 2, two bank queries whose best is item 0: the sums are 2 + 2, 1 + 1, 1 + 1 and item 0 alone is active
    bank = [[1, 0, 0], [1, 0, 0]]
    result = querybank_normalize([[2, 1, 0], [0, 1, 0.5]], bank, beta=math.log(2))
    # query 0 is best at item 0: 4 / 4, 2 / 2, 1 / 2; query 1 is best at item 1, which is not active
    np.testing.assert_allclose(np.exp(result[0]), [1.0, 1.0, 0.5])
    assert result[1].tolist() == [0, 1, 0.5]


def test_querybank_norm_equals_a_slow_loop():
    generator = np.random.default_rng(3)
    similarity, bank = generator.uniform(-1, 1, (40, 6)), generator.uniform(-1, 1, (4, 6))
    result = querybank_normalize(similarity, bank, 20.0)
    active = {max(range(6), key=lambda item, row=row: row[item]) for row in bank.tolist()}
    assert 0 < len(active) < 6
    normalized = 0
    for query, row in enumerate(similarity.tolist()):
        if max(range(6), key=lambda item, row=row: row[item]) not in active:
            assert result[query].tolist() == row
            continue
        normalized += 1
        for item in range(6):
            total = sum(math.exp(20 * bank[other, item]) for other in range(4))
            assert math.exp(result[query, item]) == pytest.approx(math.exp(20 * row[item]) / total)
    assert 0 < normalized < 40


def test_querybank_norm_sees_one_query_at_a_time_and_dual_softmax_all():
    generator = np.random.default_rng(4)
    similarity, bank = generator.uniform(-1, 1, (9, 5)), generator.uniform(-1, 1, (20, 5))
    whole = querybank_normalize(similarity, bank)
    alone = np.concatenate([querybank_normalize(row[None], bank) for row in similarity])
    np.testing.assert_allclose(alone, whole)
    assert not np.allclose(dual_softmax(similarity)[:1], dual_softmax(similarity[:1]))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_overflow_and_the_input_stays(scale):
    similarity = scale * np.array([[1.0, -1.0], [0.5, 0.25]])
    before = similarity.copy()
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert np.isfinite(dual_softmax(similarity)).all()
        assert np.isfinite(querybank_normalize(similarity, similarity)).all()
    assert np.array_equal(similarity, before)


@pytest.mark.parametrize("method", [dual_softmax, lambda similarity: querybank_normalize(similarity, similarity)])
def test_permuted_queries_and_gallery_give_permuted_scores(method):
    generator = np.random.default_rng(6)
    similarity = generator.uniform(-1, 1, (8, 5))
    queries, gallery = generator.permutation(8), generator.permutation(5)
    np.testing.assert_allclose(method(similarity[queries][:, gallery]), method(similarity)[queries][:, gallery])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual_softmax(np.zeros(3)), r"similarity.*\(3,\)"),
        (lambda: dual_softmax(np.zeros((0, 3))), r"\(0, 3\)"),
        (lambda: dual_softmax(np.eye(2), 0), "temperature.*0"),
        (lambda: dual_softmax(np.eye(2), math.nan), "temperature.*nan"),
        (lambda: querybank_normalize(np.eye(2), np.eye(2), -1), "beta.*-1"),
        (lambda: querybank_normalize(np.eye(2), np.zeros((0, 2))), r"bank_similarity.*\(0, 2\)"),
        (lambda: querybank_normalize(np.eye(2), np.eye(3)), "2 and 3 columns"),
    ],
)
def test_bad_input_names_what_it_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_method_says_what_it_assumes():
    assert set(ASSUMPTIONS) == set(POST_PROCESSES) - {"none"}
