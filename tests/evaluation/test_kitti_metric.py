import math
import random

import numpy as np
import pytest

from clockdistill.evaluation.kitti_metric import Detections, Labels, evaluate_kitti, recall_thresholds
from helpers.kitti_scenes import CLASSES, brute_force, brute_force_thresholds, random_scene


def to_labels(rows):
    return Labels(
        types=np.array([row[0] for row in rows], dtype=str),
        boxes=np.array([row[3:] for row in rows], dtype=float).reshape(-1, 4),
        occluded=np.array([row[2] for row in rows], dtype=int),
        truncated=np.array([row[1] for row in rows], dtype=float),
    )


def to_detections(rows):
    return Detections(
        types=np.array([row[0] for row in rows], dtype=str),
        boxes=np.array([row[1:5] for row in rows], dtype=float).reshape(-1, 4),
        scores=np.array([row[5] for row in rows], dtype=float),
    )


def evaluate(scene, classes=CLASSES):
    return evaluate_kitti([to_labels(x) for x, _ in scene], [to_detections(x) for _, x in scene], classes)


def assert_same(scene, expected=None):
    results, expected = evaluate(scene), brute_force(scene)
    assert results.keys() == expected.keys()
    for key, value in expected.items():
        assert results[key] == pytest.approx(value, abs=1e-6, nan_ok=True), (key, scene)
    return results


def test_equals_brute_force_on_small_scenes():
    rng = random.Random(0)
    values = [value for _ in range(2000) for value in assert_same(random_scene(rng)).values()]
    # a varied sample: some scenes without objects, some with undefined precision, and many with an AP in between
    assert 0.1 < np.isnan(values).mean() < 0.7
    assert len({round(value, 6) for value in values if value > 0}) > 40


@pytest.mark.parametrize("types", [("DontCare",), ("Van", "Person_sitting", "DontCare"), ("Misc", "Tram")])
def test_equals_brute_force_without_objects_that_count(types):
    rng = random.Random(1)
    for _ in range(50):
        assert all(map(math.isnan, assert_same(random_scene(rng, types=types)).values()))


def test_equals_brute_force_with_more_than_41_objects():
    rng = random.Random(2)
    sparse = dict(images=1, objects=2, detections=4, types=CLASSES, noise=0.1)
    for images in (150, 250, 500):
        scene = [random_scene(rng, **sparse)[0] for _ in range(images)]
        assert max(assert_same(scene).values()) > 15


def test_images_without_labels_or_detections():
    assert all(map(math.isnan, assert_same([([], [])]).values()))
    assert_same([([car(0)], []), ([], [("Car", 0, 0, 100, 50, 0.9)]), ([], [])])


def test_recall_thresholds_equal_brute_force():
    """For every number of objects, because rounding in the sum of 1/40 can decide which score is nearer."""
    rng = random.Random(4)
    for total in range(1, 400):
        for matched in (total, rng.randint(0, total)):
            scores = [rng.random() for _ in range(matched)]
            thresholds = recall_thresholds(scores, total).tolist()
            assert thresholds == brute_force_thresholds(scores, total)
            assert len(thresholds) <= 41


# ---- cases worked out by hand


def car(left, kind="Car", truncated=0.0, occluded=0, height=50.0):
    return (kind, truncated, occluded, left, 0.0, left + 100.0, height)


def detect(label, score, kind=None):
    return (kind or label[0], *label[3:], score)


def test_three_cars_and_a_false_positive():
    cars = [car(0), car(200), car(400)]
    detections = [detect(c, s) for c, s in zip(cars, (0.9, 0.8, 0.7), strict=True)]
    false_positive = detect(car(600), 0.85)
    results = evaluate([(cars, [*detections, false_positive])], ["Car"])
    # precision is 1/1, 2/3, 3/4 at the three scores; the second becomes 3/4
    assert results["Car/easy/AP40"] == pytest.approx(100 * (0.75 + 0.75) / 40)
    assert results["Car/easy/AP11"] == pytest.approx(100 * 1 / 11)


def test_a_hundred_matched_objects_have_100_percent():
    scene = [([car(0)], [detect(car(0), 0.5 + 0.001 * i)]) for i in range(100)]
    results = evaluate(scene, ["Car"])
    assert list(results.values()) == pytest.approx([100] * 6)
    # at 25 of 50 the 26 first recall positions are reached
    scene = [([car(0)], [detect(car(0), 0.5 + 0.001 * i)] if i % 2 else []) for i in range(100)]
    assert evaluate(scene, ["Car"])["Car/easy/AP40"] == pytest.approx(50)
    assert evaluate(scene, ["Car"])["Car/easy/AP11"] == pytest.approx(100 * 6 / 11)


def first_precision(labels, detections, level="easy", name="Car"):
    """The precision at the highest score, from AP11, for images with a single object that counts.

    0 if the object is missed, NaN if no object counts.
    """
    return evaluate([(labels, detections)], [name])[f"{name}/{level}/AP11"] * 11 / 100


@pytest.mark.parametrize(
    ("level", "label", "counts"),
    [
        ("easy", dict(height=40.01), True),
        ("easy", dict(height=40.0), False),
        ("moderate", dict(height=25.01), True),
        ("moderate", dict(height=25.0), False),
        ("hard", dict(height=25.01), True),
        ("hard", dict(height=25.0), False),
        ("easy", dict(truncated=0.15), True),
        ("easy", dict(truncated=0.16), False),
        ("moderate", dict(truncated=0.3), True),
        ("moderate", dict(truncated=0.31), False),
        ("hard", dict(truncated=0.5), True),
        ("hard", dict(truncated=0.51), False),
        ("easy", dict(occluded=1), False),
        ("moderate", dict(occluded=1), True),
        ("moderate", dict(occluded=2), False),
        ("hard", dict(occluded=2), True),
        ("hard", dict(occluded=3), False),
    ],
)
def test_limits_of_the_difficulties(level, label, counts):
    label = car(0, **label)
    assert first_precision([label], [detect(label, 0.9)], level) == pytest.approx(
        1 if counts else math.nan, nan_ok=True
    )


@pytest.mark.parametrize(("level", "min_height"), [("easy", 40.0), ("moderate", 25.0), ("hard", 25.0)])
def test_objects_of_the_minimum_height_are_ignored_but_detections_count(level, min_height):
    tall, minimal = car(0), car(200, height=min_height)
    # no object counts
    assert math.isnan(first_precision([minimal], [detect(minimal, 0.9)], level))
    # a detection of the minimum height is a true positive on a taller object, and a false positive on the background
    taller = car(0, height=min_height + 1)
    assert first_precision([taller], [detect(car(0, height=min_height), 0.9)], level) == pytest.approx(1)
    assert first_precision([tall], [detect(tall, 0.8), detect(minimal, 0.9)], level) == pytest.approx(1 / 2)
    smaller = car(200, height=min_height - 0.01)
    assert first_precision([tall], [detect(tall, 0.8), detect(smaller, 0.9)], level) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "right", "is_match"),
    [("Car", 70, 0), ("Car", 71, 1), ("Pedestrian", 50, 0), ("Pedestrian", 51, 1), ("Cyclist", 50, 0)],
)
def test_overlap_must_exceed_the_threshold(name, right, is_match):
    assert first_precision([car(0, name)], [(name, 0, 0, right, 50, 0.9)], name=name) == pytest.approx(is_match)


@pytest.mark.parametrize(("name", "neighbor", "precision"), [
    ("Car", "Van", 1), ("Car", "Truck", 1 / 2), ("Pedestrian", "Person_sitting", 1), ("Cyclist", "Pedestrian", 1 / 2),
])  # fmt: skip
def test_neighboring_classes_are_ignored(name, neighbor, precision):
    labels = [car(0, name), car(200, neighbor)]
    detections = [detect(labels[0], 0.8), detect(labels[1], 0.9, name)]
    assert first_precision(labels, detections, name=name) == pytest.approx(precision)


def test_detections_in_dont_care_regions_are_ignored():
    region = ("DontCare", -1, -1, 200, 0, 1000, 300)
    for left, precision in ((200, 1), (171, 1), (170, 1 / 2), (500, 1), (100, 1 / 2)):
        detections = [detect(car(0), 0.8), detect(car(left), 0.9)]
        assert first_precision([car(0), region], detections) == pytest.approx(precision), left


def test_small_detections_are_no_false_positives_but_take_objects():
    small = ("Car", 300, 0, 400, 39.9, 0.9)
    assert first_precision([car(0)], [detect(car(0), 0.8), small]) == pytest.approx(1)
    # of another class too: the object is matched, but not by a true positive
    taker = ("Cyclist", 0, 0, 100, 39.9, 0.9)
    assert first_precision([car(0, height=45.0)], [detect(car(0, height=45.0), 0.8), taker]) == pytest.approx(0)


def test_recall_takes_scores_and_precision_takes_overlap():
    # at the better box's score of 0.5 the other one would be a false positive
    better, scored = detect(car(0), 0.5), ("Car", 10, 0, 110, 50, 0.9)
    assert first_precision([car(0)], [better, scored]) == pytest.approx(1)
    # a Van takes the small detection for its score first, and the car's for its IoU then: no true or false positives
    van, label = car(0, "Van"), car(10)
    detections = [("Car", 0, 0, 100, 39.9, 0.9), ("Car", 5, 0, 105, 50, 0.8)]
    assert math.isnan(first_precision([van, label], detections))
