"""The best rows of each query: exact against a plain product, ties included, however the rows come."""

import numpy as np
import pytest

from clip_transforms.select import products, top_k
from clip_transforms.select.top_k import FOUND, ROW, Rows, TopK, best


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def rows_and_vectors(n, d, dtype=np.float32, seed=0):
    """Rows of three shards; every fourth vector repeats an earlier one, so there are ties."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(n, d))).astype(dtype)
    vectors[3::4] = vectors[rng.integers(0, n, len(vectors[3::4]))]
    rows = np.zeros(n, ROW)
    rows["shard"], rows["row"], rows["part"] = np.arange(n) % 3, np.arange(n) // 3, np.arange(n) % 3
    return rows, vectors


def plain(queries, rows, vectors, k):
    """(shard, row) and similarity of the best rows of each query, by one float64 product."""
    products = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    orders = [np.lexsort([rows["row"], rows["shard"], -of])[:k] for of in products]
    return [
        [(rows["shard"][i], rows["row"][i], of[i]) for i in order] for of, order in zip(products, orders, strict=True)
    ]


def of_queries(found, count):
    return [[(r["shard"], r["row"], r["similarity"]) for r in found[found["query"] == q]] for q in range(count)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("k", [1, 10, 400])
@pytest.mark.parametrize("values", [1 << 22, 999], ids=["wide blocks", "narrow blocks"])
def test_it_is_the_plain_product_with_ties_by_shard_and_row(dtype, k, values, monkeypatch):
    monkeypatch.setattr(top_k, "_VALUES", values)
    rows, vectors = rows_and_vectors(300, 24, dtype)
    queries = np.concatenate([unit(np.random.default_rng(1).normal(size=(20, 24))), vectors[:5].astype(np.float32)])
    for block in (7, 300):
        top = TopK(queries, k)
        for first in np.random.default_rng(2).permutation(np.arange(0, 300, block)):
            top.add(rows[first : first + block], vectors[first : first + block])
        assert of_queries(top.found, len(queries)) == plain(queries, rows, vectors, k)


@pytest.mark.parametrize("spread", [1.0, 1e-2], ids=["far from each other", "near copies"])
def test_with_bf16_the_result_is_the_same(spread, monkeypatch):
    """Products in bf16 are wrong in the third digit. Of near copies they say nothing, so float32 is asked too."""
    rng, asked = np.random.default_rng(4), []
    rows, vectors = rows_and_vectors(3_000, 64)
    vectors = unit(vectors[:1] + spread * vectors) if spread < 1 else vectors
    queries = unit(vectors[:300] + 0.1 * rng.normal(size=(300, 64)))
    plainly = TopK(queries, 10)
    plainly.add(rows, vectors)
    for name in ("in_bf16", "in_float32"):
        real = getattr(products, name)
        monkeypatch.setattr(products, name, lambda *of, n=name, f=real: asked.append(n) or f(*of))
    monkeypatch.setattr(products, "has_amx", lambda: True)
    quickly = TopK(queries, 10)
    quickly.add(rows, vectors)
    assert np.array_equal(quickly.found, plainly.found)
    assert asked == ["in_bf16", *(["in_float32"] if spread < 1 else [])]


def test_few_queries_are_multiplied_in_float32_everywhere(monkeypatch):
    monkeypatch.setattr(products, "has_amx", lambda: True)
    assert products.ways(255) == (products.in_float32,)
    assert products.ways(256) == (products.in_bf16, products.in_float32)


def test_a_product_is_as_near_as_it_says():
    vectors = unit(np.random.default_rng(5).normal(size=(600, 512)))
    vectors[300:] = unit(np.abs(vectors[300:]))  # errors of one sign add up here
    exact = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    for multiply, far in ((products.in_bf16, 0.006), (products.in_float32, 1e-4)):
        found, said = multiply(vectors, vectors)
        assert np.abs(found - exact).max() < said <= far


def test_sums_of_pieces_are_the_same_in_any_order():
    rows, vectors = rows_and_vectors(200, 8)
    queries = vectors[:9]
    pieces = []
    for first in range(0, 200, 50):
        top = TopK(queries, 6)
        top.add(rows[first : first + 50], vectors[first : first + 50])
        pieces.append(top.found)
    whole = best(np.concatenate(pieces[::-1]), 6)
    assert of_queries(whole, 9) == plain(queries, rows, vectors, 6)
    assert np.array_equal(best(np.concatenate([pieces[2], best(np.concatenate(pieces[:2]), 6), pieces[3]]), 6), whole)


def test_rows_that_differ_by_less_than_a_product_can_tell_are_in_the_right_order():
    """The vectors differ in the last bits, so that products in float32 come out in another order."""
    rng = np.random.default_rng(3)
    one = unit(rng.normal(size=512))
    vectors = one + rng.normal(size=(2_000, 512)).astype(np.float32) * np.float32(1e-8)
    rows = np.zeros(2_000, ROW)
    rows["row"] = np.arange(2_000)
    top = TopK(one[None], 50)
    top.add(rows, vectors)
    exact = (vectors.astype(np.float64) @ one.astype(np.float64)).astype(np.float32)
    assert top.found["row"].tolist() == np.lexsort([np.arange(2_000), -exact])[:50].tolist()


def test_vectors_that_are_not_finite_are_never_found():
    rows, vectors = rows_and_vectors(6, 4)
    vectors[1], vectors[2, 0] = np.nan, np.inf
    top = TopK(vectors[:1], 10)
    top.add(rows, vectors)
    top.add(rows[1:3], vectors[1:3])
    assert set(zip(top.found["shard"].tolist(), top.found["row"].tolist(), strict=True)) == {
        (0, 0),
        (0, 1),
        (1, 1),
        (2, 1),
    }


def test_small_pieces_wait_for_each_other_and_none_is_lost():
    rows, vectors = rows_and_vectors(100, 8)
    top = TopK(vectors[:3], 100)
    waiting = Rows(top, least=40)
    for first in range(0, 100, 9):
        waiting.add(rows[first : first + 9], vectors[first : first + 9])
    waiting.flush()
    waiting.flush()
    assert of_queries(top.found, 3) == plain(vectors[:3], rows, vectors, 100)


def test_without_rows_nothing_is_found():
    assert len(TopK(np.ones((2, 4), np.float32), 3).found) == 0 and len(best(np.empty(0, FOUND), 3)) == 0
