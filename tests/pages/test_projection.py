"""The map: principal components with fixed signs, and paths of points."""

import numpy as np
import pytest

from clip_transforms.pages.projection import HEIGHT, WIDTH, layers, project, told_apart


def cloud(rows=200, d=6):
    return (np.random.default_rng(0).normal(size=(rows, d)) * [9, 5, 1, 1, 1, 1]).astype(np.float32)


def test_the_axes_are_the_two_components_of_the_largest_variance():
    vectors = cloud()
    places, explained = project(vectors)
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    _, sizes, components = np.linalg.svd(centred, full_matrices=False)
    assert explained == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum())
    for axis, sign in ((0, 1), (1, -1)):  # the second axis points up, and y on a page down
        component = components[axis] * np.sign(components[axis][np.abs(components[axis]).argmax()])
        assert np.corrcoef(places[:, axis], sign * (centred @ component))[0, 1] > 0.9999


def test_the_places_depend_neither_on_the_order_of_rows_nor_on_the_sign_of_a_solver():
    vectors, order = cloud(), np.random.default_rng(1).permutation(200)
    places = project(vectors).places
    assert np.abs(project(vectors[order]).places - places[order]).max() <= 1
    assert places.min() >= 0 and places[:, 0].max() <= WIDTH and places[:, 1].max() <= HEIGHT


@pytest.mark.parametrize("vectors", [np.zeros((0, 4)), np.ones((1, 4)), np.ones((5, 4)), np.ones((3, 1))], ids=str)
def test_too_little_to_project_is_put_in_the_middle(vectors):
    places, explained = project(vectors.astype(np.float32))
    assert explained == 0 and places.tolist() == [[WIDTH // 2, HEIGHT // 2]] * len(vectors)


def test_each_of_the_most_frequent_classes_has_a_layer_and_the_others_come_first():
    labels = [None, "a", "b", "a", *"cdefghi"]
    places = np.arange(22).reshape(11, 2)
    found = layers(places, labels, ["a", *"bcdefghi"])
    assert [(name, count) for name, count, _ in found][:3] == [("", 2), ("a", 2), ("b", 1)]
    assert len(found) == 9 and found[1][2] == "M2 3h0M6 7h0"
    assert layers(places, [None] * 11, [])[0][:2] == ("", 11)


def test_labels_that_lie_apart_are_told_apart():
    places = np.array([[0, 0], [1, 1], [100, 100], [101, 101]])
    assert told_apart(places, ["a", "a", "b", "b"]) > 0.99 > 0.01 > told_apart(places, ["a", "b", "a", "b"])
    assert told_apart(places, [None] * 4) == told_apart(places[:1], ["a"]) == 0
