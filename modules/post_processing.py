"""Post-processing of a similarity matrix against hubness; numpy only.

Hubs are a few gallery items that are close to very many queries. Both methods use other queries to find them, so a
result is no longer that of one query and the gallery alone: `ASSUMPTIONS` states what each method assumes, and every
processed result carries that sentence.

Rows are queries, columns are gallery items, larger is better. The defaults are for cosines and were not tuned on a test
split.
"""

import numpy as np

POST_PROCESSES = ("none", "dsl", "qb_norm")
ASSUMPTIONS = {
    "dsl": "all test queries are known at once, which a search for a single query does not satisfy",
    "qb_norm": "a bank of training captions is at hand; each test query is processed on its own",
}


def dual_softmax(similarity, temperature: float = 100.0) -> np.ndarray:
    """Multiply each score by its softmax over the queries: s * softmax_queries(temperature * s).

    Dual softmax at inference (Cheng et al., 2021, CAMoE, arXiv:2109.04290). Meant for scores >= 0: the product of a
    negative score *rises* as its softmax falls.

    Args:
        similarity: (queries, gallery).
        temperature: multiplies the scores before the softmax.

    Returns:
        (queries, gallery) float64.

    Raises:
        ValueError: not two axes, none of them empty, or a temperature that is not positive and finite.
    """
    similarity = as_matrix(similarity, "similarity")
    check_positive("temperature", temperature)
    share = temperature * similarity
    share -= share.max(axis=0)  # leaves the softmax unchanged and keeps exp from overflowing
    np.exp(share, out=share)
    share /= share.sum(axis=0)
    share *= similarity
    return share


def querybank_normalize(similarity, bank_similarity, beta: float = 20.0) -> np.ndarray:
    """Apply QB-Norm with dynamic inverted softmax and top-1 activation (Bogolin et al., 2022, arXiv:2112.12777).

    A gallery item is *active* if it ranks first for any query of the query bank. A test query whose first item is
    active is scored by the inverted softmax, exp(beta * s) / sum over the bank of exp(beta * s_bank) with the same
    item; any other query keeps its scores.

    Args:
        similarity: (queries, gallery) of the test queries.
        bank_similarity: (N, gallery) of the bank's queries with the same gallery.
        beta: inverse temperature; 20 is the paper's.

    Returns:
        (queries, gallery) float64. Normalised rows hold the *logarithm* of the formula, which ranks a row equally and
        cannot overflow.

    Raises:
        ValueError: not two axes, none of them empty, two galleries, or a beta that is not positive and finite.
    """
    similarity = as_matrix(similarity, "similarity")
    bank_similarity = as_matrix(bank_similarity, "bank_similarity")
    if similarity.shape[1] != bank_similarity.shape[1]:
        raise ValueError(
            f"queries and bank need the same gallery: {similarity.shape[1]} and {bank_similarity.shape[1]} columns"
        )
    check_positive("beta", beta)
    active = np.zeros(similarity.shape[1], dtype=bool)
    active[bank_similarity.argmax(axis=1)] = True
    normalized_rows = active[similarity.argmax(axis=1)]

    bank_largest = bank_similarity.max(axis=0)
    log_sum = beta * bank_largest + np.log(np.exp(beta * (bank_similarity - bank_largest)).sum(axis=0))
    similarity[normalized_rows] = beta * similarity[normalized_rows] - log_sum
    return similarity


def as_matrix(values, name: str) -> np.ndarray:
    """Return a float64 copy: in float32, small values of a softmax would underflow to ties at 0."""
    matrix = np.array(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} must have two axes, none of them empty, got shape {matrix.shape}")
    return matrix


def check_positive(name: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
