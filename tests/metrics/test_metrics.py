"""Every metric against worked examples, scikit-learn, and CLIP_benchmark's formulas written anew."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from threadpoolctl import threadpool_limits

from clip_transforms.metrics.intervals import Z, spread, wilson
from clip_transforms.metrics.multi_label import average_precision, eleven_point_precision, roc_auc
from clip_transforms.metrics.ranks import Queries, ranks
from clip_transforms.metrics.single_label import Confusion, places_of


@pytest.fixture(autouse=True)
def one_thread():
    """The tests' products are small: several threads of BLAS would only wait for each other."""
    with threadpool_limits(1, "blas"):
        yield


EXAMPLES = json.loads((Path(__file__).parent / "metric_examples.json").read_text())


# One right class


def test_the_worked_example_of_zero_shot_labels():
    example = EXAMPLES["zeroshot"]
    truth = np.array(example["target"])
    found = Confusion.of(np.array(example["logits"], np.float32), truth)
    assert found.hits.sum() / 5 == pytest.approx(example["acc1"], abs=1e-7)
    assert found.near.sum() / 5 == pytest.approx(example["acc5"], abs=1e-7)
    assert found.mean_per_class_recall() == example["mean_per_class_recall"]
    occurring = np.flatnonzero(found.samples)
    recalls = {str(index): found.hits[index] / found.samples[index] for index in occurring}
    assert recalls == example["per_class"]


def clip_benchmark_accuracy(output, target, topk):
    """CLIP_benchmark's definition: the share of samples whose target is among the k best."""
    best = torch.topk(output, max(topk), 1, True, True)[1]
    right = best == target[:, None]
    return [right[:, :k].any(1).float().mean().item() for k in topk]


@pytest.mark.parametrize("k", [5, 7, 40])
def test_accuracies_are_those_of_clip_benchmark(k):
    rng = np.random.default_rng(k)
    scores = rng.normal(size=(500, k)).astype(np.float32)
    truth = rng.integers(0, k, 500)
    truth[truth == 2] = 3  # a class without samples
    scores[np.arange(500), truth] += 0.8
    found = Confusion.of(scores, truth)
    acc1, acc5 = clip_benchmark_accuracy(torch.from_numpy(scores), torch.from_numpy(truth), (1, 5))
    assert found.hits.sum() / 500 == pytest.approx(acc1, abs=1e-6)
    assert found.near.sum() / 500 == pytest.approx(acc5, abs=1e-6)
    with pytest.warns(UserWarning) if not set(scores.argmax(1)) <= set(truth) else _nothing():
        assert found.mean_per_class_recall() == balanced_accuracy_score(truth, scores.argmax(1))


class _nothing:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_of_equal_scores_the_first_class_is_better():
    scores = np.zeros((3, 6), np.float32)
    truth = np.array([0, 4, 5])
    assert places_of(scores, truth).tolist() == [0, 4, 5]
    found = Confusion.of(scores, truth)
    assert found.labels.tolist() == [3, 0, 0, 0, 0, 0] and found.near.sum() == 2


def test_confusions_add_up_in_any_order_and_count_samples_without_a_truth_as_labels_alone():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(90, 4)).astype(np.float32), rng.integers(0, 6, 90)
    whole = Confusion.of(scores, truth)
    parts = [Confusion.of(scores[i : i + 30], truth[i : i + 30]) for i in (60, 0, 30)]
    for total in (
        Confusion.sum(4, parts),
        Confusion.sum(4, [Confusion.sum(4, parts[:2]), Confusion.sum(4, []), parts[2]]),
    ):
        assert all(np.array_equal(getattr(total, n), getattr(whole, n)) for n in ("pairs", "counts", "near"))
    assert whole.labels.sum() == 90 and whole.samples.sum() == (truth < 4).sum() == whole.rated().labels.sum()
    assert Confusion.sum(4, []).mean_per_class_recall() is None
    one = Confusion.of(np.ones((3, 1), np.float32), np.array([0, 0, 1]))
    assert one.hits.tolist() == [2] and one.mean_per_class_recall() == 1


# Several classes


def test_the_worked_example_of_average_precision():
    example = EXAMPLES["ap"]
    scores, truth = np.array(example["scores"], np.float32), np.array(example["targets"], bool)
    assert average_precision(scores, truth) == pytest.approx(example["sklearn_ap"], abs=1e-15)
    assert average_precision(scores, truth) == pytest.approx(example["clip_benchmark_ap"], abs=1e-15)
    assert eleven_point_precision(scores, truth) == pytest.approx(example["voc11"], abs=1e-15)
    assert roc_auc(scores, truth) == pytest.approx(example["roc_auc"], abs=1e-15)
    ties = example["ties"]
    scores, truth = np.array(ties["scores"], np.float32), np.array(ties["targets"], bool)
    assert average_precision(scores, truth) == ties["sklearn_ap"] and roc_auc(scores, truth) == ties["roc_auc"]
    assert eleven_point_precision(scores, truth) == 0.5


def test_recalls_of_a_tenth_are_compared_as_integers():
    example = EXAMPLES["voc11_float_trap"]
    truth = np.array(example["targets_in_rank_order"], bool)
    found = eleven_point_precision(-np.arange(len(truth), dtype=np.float32), truth)
    assert found == pytest.approx(example["exact_tenths"], abs=1e-15) != pytest.approx(example["with_np_arange"])


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_rankings_are_those_of_scikit_learn_to_the_last_digit(ties):
    rng = np.random.default_rng(3)
    for n in (2, 9, 400):
        scores, truth = rng.normal(size=n).astype(np.float32), rng.random(n) < 0.3
        truth[:2] = True, False
        scores = np.round(scores, 1) if ties else scores
        assert average_precision(scores, truth) == average_precision_score(truth, scores)
        assert roc_auc(scores, truth) == roc_auc_score(truth, scores)


def clip_benchmark_ap(scores, targets):
    order = torch.sort(scores, 0, True)[1]
    truth = targets[order].float()
    precision = truth.cumsum(0) / torch.arange(1, len(scores) + 1)
    return (precision[truth.bool()].sum() / max(float(truth.sum()), 1)).item()


def test_average_precision_without_ties_is_that_of_clip_benchmark():
    rng = np.random.default_rng(4)
    scores, truth = rng.permutation(300).astype(np.float32), rng.random(300) < 0.2
    assert average_precision(scores, truth) == pytest.approx(
        clip_benchmark_ap(torch.from_numpy(scores), torch.from_numpy(truth)), abs=1e-6
    )


def test_a_class_without_positives_has_no_precision_and_one_without_negatives_no_curve():
    scores = np.array([0.5, 0.1], np.float32)
    none, all_ = np.zeros(2, bool), np.ones(2, bool)
    assert average_precision(scores, none) is eleven_point_precision(scores, none) is roc_auc(scores, none) is None
    assert (
        average_precision(scores, all_) == eleven_point_precision(scores, all_) == 1 and roc_auc(scores, all_) is None
    )


# Retrieval


def image_hits(texts, images, owners, most=10):
    """Places of the right image of each text, and of the first right text of each image that has one."""
    to_image = ranks(Queries.of(texts, images[owners], np.arange(len(texts)), owners), [images], most)
    order = np.argsort(owners, kind="stable")
    with_text, places = np.unique(owners[order], return_inverse=True)
    to_text = ranks(Queries.of(images[with_text], texts[order], places, order), [texts], most)
    return to_image, to_text


def test_the_worked_example_of_retrieval():
    example = EXAMPLES["retrieval"]
    texts, images = np.array(example["texts_by_images"], np.float32), np.eye(3, dtype=np.float32)
    (to_image, _), (to_text, _) = image_hits(texts, images, np.array(example["image_of_text"]))
    for k in (1, 2):
        assert np.mean(to_image < k) == example[f"image_retrieval_recall@{k}"]
        assert np.mean(to_text < k) == pytest.approx(example[f"text_retrieval_recall@{k}"])
    assert (to_image < 1).tolist() == example["image_hits1"] and (to_text < 1).tolist() == example["text_hits1"]


def clip_benchmark_recall(scores, positives, k):
    """CLIP_benchmark's definition: whether any positive is among the k best candidates of a row."""
    best = torch.topk(scores, k, dim=1)[1]
    return (positives.gather(1, best).sum(1) > 0).float().mean().item()


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def test_recall_is_that_of_clip_benchmark_with_several_captions_an_image(monkeypatch):
    monkeypatch.setattr("clip_transforms.metrics.ranks._BLOCK", 7)
    rng = np.random.default_rng(5)
    images, owners = unit(rng, 40, 16), np.repeat(np.arange(40), rng.integers(1, 6, 40))
    texts = images[owners] + 0.4 * unit(rng, len(owners), 16)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    shuffled = rng.permutation(len(owners))
    texts, owners = texts[shuffled], owners[shuffled]
    (to_image, _), (to_text, _) = image_hits(texts, images, owners)
    scores = torch.from_numpy(texts @ images.T)
    positives = torch.zeros(scores.shape, dtype=torch.bool)
    positives[torch.arange(len(owners)), torch.from_numpy(owners)] = True
    for k in (1, 5, 10):
        assert np.mean(to_image < k) == pytest.approx(clip_benchmark_recall(scores, positives, k), abs=1e-6)
        assert np.mean(to_text < k) == pytest.approx(clip_benchmark_recall(scores.T, positives.T, k), abs=1e-6)


def test_of_equal_candidates_the_first_comes_before_and_ties_are_reported():
    rng = np.random.default_rng(6)
    images = np.repeat(unit(rng, 1, 8), 4, axis=0)
    texts = images[:3].copy()
    to_image, tied = ranks(
        Queries.of(texts, images[[0, 1, 3]], np.arange(3), np.array([0, 1, 3])), [images[:2], images[2:]]
    )
    assert to_image.tolist() == [0, 1, 3] and tied.all()
    alone, tied = ranks(Queries.of(texts[:1], images[:1], np.zeros(1, int), np.zeros(1, int)), [images[:1]])
    assert alone.tolist() == [0] and not tied.any()


def test_ranks_are_exact_where_float32_products_are_in_doubt():
    rng = np.random.default_rng(7)
    query = unit(rng, 1, 64)
    candidates = np.repeat(query, 50, axis=0) + 3e-8 * rng.normal(size=(50, 64)).astype(np.float32)
    exact = candidates.astype(np.float64) @ query[0].astype(np.float64)
    for right in (0, 20, 49):
        found, _ = ranks(Queries.of(query, candidates[[right]], np.zeros(1, int), np.array([right])), [candidates], 50)
        before = (exact > exact[right]) | ((exact == exact[right]) & (np.arange(50) < right))
        assert found.tolist() == [np.count_nonzero(before)]


def test_counting_stops_at_the_limit():
    rng = np.random.default_rng(8)
    images = unit(rng, 500, 4)
    worst = int((images @ images[0]).argmin())
    query = Queries.of(images[:1], images[[worst]], np.zeros(1, int), np.array([worst]))
    assert ranks(query, [images], 10)[0].tolist() == [10] and ranks(query, [images], 1000)[0].tolist() == [499]


# Intervals


@pytest.mark.parametrize("name", [name for name in EXAMPLES["wilson"] if name != "z"])
def test_wilsons_intervals_are_those_of_the_worked_examples(name):
    hits, n = map(int, name.split("/"))
    assert wilson(hits, n) == pytest.approx(EXAMPLES["wilson"][name], rel=1e-14)
    assert Z == EXAMPLES["wilson"]["z"]


def test_rates_of_groups_and_their_spread_are_those_of_the_worked_example():
    groups = {name: of for name, of in EXAMPLES["group_rates"].items() if name != "spread"}
    for of in groups.values():
        assert of["k"] / of["n"] == of["rate"] and wilson(of["k"], of["n"]) == pytest.approx(of["wilson"], rel=1e-14)
    assert spread(of["rate"] for of in groups.values()) == EXAMPLES["group_rates"]["spread"]
    assert wilson(0, 0) is None and spread([0.5, None]) is None and spread([]) is None
