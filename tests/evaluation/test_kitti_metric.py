import logging
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

from clockdistill.data import KITTI_CLASSES, register_kitti
from clockdistill.data.builtin import register_all
from clockdistill.data.kitti import parse_lines
from clockdistill.errors import UserError
from clockdistill.evaluation.kitti import KITTIEvaluator
from clockdistill.evaluation.kitti_metric import Detections, Labels, evaluate_kitti, recall_thresholds
from helpers.models import CONFIGS

CLASSES = ("Car", "Pedestrian", "Cyclist")
LEVELS = {"easy": (40, 0, 0.15), "moderate": (25, 1, 0.3), "hard": (25, 2, 0.5)}

# A label is (type, truncated, occluded, left, top, right, bottom), a detection (type, left, top, right, bottom, score);
# a scene is a list of images, each a list of labels and a list of detections.


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


# ---- the rules once more, as plainly as they can be written


def common_area(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0


def box_area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def brute_force(scene):
    return {
        f"{name}/{level}/AP{points}": ap
        for name in CLASSES
        for level in LEVELS
        for points, ap in brute_force_ap(scene, name, level).items()
    }


def brute_force_ap(scene, name, level):
    min_overlap = 0.7 if name == "Car" else 0.5
    neighbour = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": None}[name]
    min_height, max_occluded, max_truncated = LEVELS[level]

    images = []
    for labels, detections in scene:
        objects = []
        for kind, truncated, occluded, *box in labels:
            if kind == name:
                hard = occluded > max_occluded or truncated > max_truncated or box[3] - box[1] <= min_height
                objects.append((box, hard))
            elif kind == neighbour:
                objects.append((box, True))
        regions = [box for kind, _, _, *box in labels if kind == "DontCare"]
        found = []
        for kind, *box, score in detections:
            if int(abs(box[1] - box[3])) < min_height:
                found.append((box, score, "small"))
            elif kind == name:
                found.append((box, score, "counts"))
        images.append((objects, regions, found))

    total = 0
    hits = []
    for objects, _, found in images:
        taken = set()
        for box, ignored in objects:
            total += not ignored
            best = None
            for j, (other, score, _) in enumerate(found):
                if j not in taken and iou(box, other) > min_overlap and (best is None or score > found[best][1]):
                    best = j
            if best is not None:
                taken.add(best)
                if not ignored and found[best][2] == "counts":
                    hits.append(found[best][1])
    if total == 0:
        return {40: math.nan, 11: math.nan}

    thresholds = brute_force_thresholds(hits, total)
    curve = [0.0] * 41
    for i in range(len(thresholds)):
        right = wrong = 0
        for objects, regions, found in images:
            r, w = count(objects, regions, found, thresholds[i], min_overlap)
            right += r
            wrong += w
        curve[i] = right / (right + wrong) if right + wrong > 0 else math.nan
    for i in range(41):
        for later in curve[i + 1 :]:
            if later > curve[i]:
                curve[i] = later
    return {40: 100 * sum(curve[1:]) / 40, 11: 100 * sum(curve[0:41:4]) / 11}


def brute_force_thresholds(hits, total):
    hits = sorted(hits)
    hits.reverse()
    thresholds = []
    target = 0.0
    for i in range(len(hits)):
        this = (i + 1) / total
        following = (i + 2) / total
        is_last = i == len(hits) - 1
        if is_last or following - target >= target - this:
            thresholds.append(hits[i])
            target += 1.0 / 40.0
    return thresholds


def iou(a, b):
    common = common_area(a, b)
    return common / (box_area(a) + box_area(b) - common) if common else 0


def count(objects, regions, found, threshold, min_overlap):
    found = [x for x in found if x[1] >= threshold]
    taken = set()
    right = wrong = 0
    for box, ignored in objects:
        best = None
        for j, (other, _, state) in enumerate(found):
            if j in taken or state != "counts" or iou(box, other) <= min_overlap:
                continue
            if best is None or iou(box, other) > iou(box, found[best][0]):
                best = j
        if best is None:
            for j, (other, _, state) in enumerate(found):
                if j not in taken and state == "small" and iou(box, other) > min_overlap:
                    best = j
                    break
        if best is not None:
            taken.add(best)
            if not ignored and found[best][2] == "counts":
                right += 1
    for j, (box, _, state) in enumerate(found):
        if j in taken or state == "small":
            continue
        in_region = False
        for region in regions:
            common = common_area(box, region)
            if common and common / box_area(box) > min_overlap:
                in_region = True
        if not in_region:
            wrong += 1
    return right, wrong


# ---- random scenes, full of equals, limits and what is ignored

TYPES = (*KITTI_CLASSES, "DontCare", *("Car", "Pedestrian") * 4, "Cyclist", "Cyclist")
TRUNCATED = (*(0,) * 8, 0.15, 0.16, 0.3, 0.31, 0.5, 0.51)
HEIGHTS = (24.99, 25, 25.5, 30, 39.99, 40, 41, 60)


def random_box(rng):
    left, top = rng.choice((0, 20, 50, 300)), rng.choice((0, 3, 100))
    return [left, top, left + rng.choice((20, 50, 100)), top + rng.choice(HEIGHTS)]


def near(rng, box):
    """A box whose IoU with this one is often at the limit, just above or just below."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    kind = rng.randrange(8)
    if kind == 0:
        return [left, top, left + rng.choice((0.5, 0.51, 0.7, 0.71, 0.49, 0.69)) * width, bottom]
    if kind == 1:
        return [left, top, right, top + rng.choice((0.5, 0.7, 0.75, 0.9)) * height]
    if kind == 2:
        shift = rng.choice((1, 2, 3, 5))
        return [left + shift, top, right + shift, bottom]
    if kind == 3:
        return [left, top, right, top + rng.choice(HEIGHTS)]
    return list(box)


def random_scene(rng, images=3, objects=5, detections=8, types=TYPES, noise=0.25):
    scene = []
    for _ in range(rng.randint(1, images)):
        labels = []
        for _ in range(rng.randint(0, objects)):
            kind = rng.choice(types)
            box = near(rng, rng.choice(labels)[3:]) if labels and rng.random() < 0.3 else random_box(rng)
            flags = (-1, -1) if kind == "DontCare" else (rng.choice(TRUNCATED), rng.choice((0, 0, 0, 0, 1, 2, 3)))
            labels.append((kind, *flags, *box))
        found = []
        for _ in range(rng.randint(detections // 2, detections)):
            label = rng.choice(labels) if labels else None
            is_near = label is not None and rng.random() > noise
            box = near(rng, label[3:]) if is_near else random_box(rng)
            same = label is not None and label[0] in KITTI_CLASSES and rng.random() > noise
            kind = label[0] if same else rng.choice(CLASSES)
            found.append((kind, *box, rng.choice((0.9, 0.8, 0.7, 0.5, 0.5, rng.random()))))
        scene.append((labels, found))
    return scene


def assert_same(scene, expected=None):
    results, expected = evaluate(scene), brute_force(scene)
    assert results.keys() == expected.keys()
    for key, value in expected.items():
        assert results[key] == pytest.approx(value, abs=1e-6, nan_ok=True), (key, scene)
    return results


def test_equals_brute_force_on_small_scenes():
    rng = random.Random(0)
    values = [value for _ in range(2000) for value in assert_same(random_scene(rng)).values()]
    # the scenes say something: some have nothing to find, some undefined precision, and many an AP in between
    assert 0.1 < np.isnan(values).mean() < 0.7
    assert len({round(value, 6) for value in values if value > 0}) > 40


@pytest.mark.parametrize("types", [("DontCare",), ("Van", "Person_sitting", "DontCare"), ("Misc", "Tram")])
def test_equals_brute_force_where_nothing_counts(types):
    rng = random.Random(1)
    for _ in range(50):
        assert all(map(math.isnan, assert_same(random_scene(rng, types=types)).values()))


def test_equals_brute_force_where_recall_has_more_steps_than_41():
    rng = random.Random(2)
    sparse = dict(images=1, objects=2, detections=4, types=CLASSES, noise=0.1)
    for images in (150, 250, 500):
        scene = [random_scene(rng, **sparse)[0] for _ in range(images)]
        assert max(assert_same(scene).values()) > 15


def test_images_without_labels_or_detections():
    assert all(map(math.isnan, assert_same([([], [])]).values()))
    assert_same([([car(0)], []), ([], [("Car", 0, 0, 100, 50, 0.9)]), ([], [])])


def test_recall_is_read_at_the_same_scores():
    """For every number of objects: which of two scores is the nearer one can hang on how 1/40 was summed up."""
    rng = random.Random(4)
    for total in range(1, 400):
        for found_ones in (total, rng.randint(0, total)):
            hits = [rng.random() for _ in range(found_ones)]
            thresholds = recall_thresholds(hits, total).tolist()
            assert thresholds == brute_force_thresholds(hits, total)
            assert len(thresholds) <= 41


# ---- cases that can be worked out by hand


def car(left, kind="Car", truncated=0.0, occluded=0, height=50.0):
    return (kind, truncated, occluded, left, 0.0, left + 100.0, height)


def found(label, score, kind=None):
    return (kind or label[0], *label[3:], score)


def test_three_cars_and_a_false_positive():
    cars = [car(0), car(200), car(400)]
    detections = [found(c, s) for c, s in zip(cars, (0.9, 0.8, 0.7), strict=True)]
    wrong = found(car(600), 0.85)
    results = evaluate([(cars, [*detections, wrong])], ["Car"])
    # precision is 1/1, 2/3, 3/4 at the three scores; the second becomes 3/4
    assert results["Car/easy/AP40"] == pytest.approx(100 * (0.75 + 0.75) / 40)
    assert results["Car/easy/AP11"] == pytest.approx(100 * 1 / 11)


def test_a_hundred_objects_that_are_all_found_have_100_percent():
    scene = [([car(0)], [found(car(0), 0.5 + 0.001 * i)]) for i in range(100)]
    results = evaluate(scene, ["Car"])
    assert list(results.values()) == pytest.approx([100] * 6)
    # at 25 of 50 the 26 first recall positions are reached
    scene = [([car(0)], [found(car(0), 0.5 + 0.001 * i)] if i % 2 else []) for i in range(100)]
    assert evaluate(scene, ["Car"])["Car/easy/AP40"] == pytest.approx(50)
    assert evaluate(scene, ["Car"])["Car/easy/AP11"] == pytest.approx(100 * 6 / 11)


def first_precision(labels, detections, level="easy", name="Car"):
    """The precision at the highest score, from AP11: one object that counts and is found, and nothing else is needed.

    0 where the object is not found, NaN where none counts.
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
    assert first_precision([label], [found(label, 0.9)], level) == pytest.approx(1 if counts else math.nan, nan_ok=True)


@pytest.mark.parametrize(("level", "min_height"), [("easy", 40.0), ("moderate", 25.0), ("hard", 25.0)])
def test_objects_of_the_least_height_are_ignored_but_detections_count(level, min_height):
    tall, least = car(0), car(200, height=min_height)
    # no object counts
    assert math.isnan(first_precision([least], [found(least, 0.9)], level))
    # a detection of the least height is a true positive on a taller object, and a false positive on the background
    taller = car(0, height=min_height + 1)
    assert first_precision([taller], [found(car(0, height=min_height), 0.9)], level) == pytest.approx(1)
    assert first_precision([tall], [found(tall, 0.8), found(least, 0.9)], level) == pytest.approx(1 / 2)
    smaller = car(200, height=min_height - 0.01)
    assert first_precision([tall], [found(tall, 0.8), found(smaller, 0.9)], level) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "right", "is_found"),
    [("Car", 70, 0), ("Car", 71, 1), ("Pedestrian", 50, 0), ("Pedestrian", 51, 1), ("Cyclist", 50, 0)],
)
def test_overlap_must_be_more_than_the_least_one(name, right, is_found):
    assert first_precision([car(0, name)], [(name, 0, 0, right, 50, 0.9)], name=name) == pytest.approx(is_found)


@pytest.mark.parametrize(("name", "neighbour", "precision"), [
    ("Car", "Van", 1), ("Car", "Truck", 1 / 2), ("Pedestrian", "Person_sitting", 1), ("Cyclist", "Pedestrian", 1 / 2),
])  # fmt: skip
def test_neighbouring_classes_are_neither_right_nor_wrong(name, neighbour, precision):
    labels = [car(0, name), car(200, neighbour)]
    detections = [found(labels[0], 0.8), found(labels[1], 0.9, name)]
    assert first_precision(labels, detections, name=name) == pytest.approx(precision)


def test_regions_excuse_detections_by_their_share_within():
    region = ("DontCare", -1, -1, 200, 0, 1000, 300)
    for left, precision in ((200, 1), (171, 1), (170, 1 / 2), (500, 1), (100, 1 / 2)):
        detections = [found(car(0), 0.8), found(car(left), 0.9)]
        assert first_precision([car(0), region], detections) == pytest.approx(precision), left


def test_small_detections_are_not_wrong_but_take_objects():
    small = ("Car", 300, 0, 400, 39.9, 0.9)
    assert first_precision([car(0)], [found(car(0), 0.8), small]) == pytest.approx(1)
    # of another class too: the object is taken, and so neither found nor missed
    taker = ("Cyclist", 0, 0, 100, 39.9, 0.9)
    assert first_precision([car(0, height=45.0)], [found(car(0, height=45.0), 0.8), taker]) == pytest.approx(0)


def test_recall_takes_scores_and_precision_takes_overlap():
    # were recall read at the better box's 0.5, the other one would be wrong there
    better, scored = found(car(0), 0.5), ("Car", 10, 0, 110, 50, 0.9)
    assert first_precision([car(0)], [better, scored]) == pytest.approx(1)
    # a Van takes the small detection of the higher score at first, and then the car's own: nothing right, nothing wrong
    van, label = car(0, "Van"), car(10)
    detections = [("Car", 0, 0, 100, 39.9, 0.9), ("Car", 5, 0, 105, 50, 0.8)]
    assert math.isnan(first_precision([van, label], detections))


# ---- the evaluator


def make_kitti(root, scenes, size=(1242, 375)):
    for folder in ("image_2", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    for number, (labels, _) in enumerate(scenes):
        Image.new("RGB", size).save(root / "training" / "image_2" / f"{number:06d}.png")
        text = "".join(
            f"{kind} {truncated} {occluded} -10 {' '.join(map(str, box))} -1 -1 -1 -1000 -1000 -1000 -10\n"
            for kind, truncated, occluded, *box in labels
        )
        (root / "training" / "label_2" / f"{number:06d}.txt").write_text(text)
    (root / "ImageSets" / "val.txt").write_text("\n".join(f"{i:06d}" for i in range(len(scenes))))


@pytest.fixture
def kitti(tmp_path, monkeypatch):
    """`kitti_val` with the labels of a random scene, which it gives, and the folder for output."""
    rng = random.Random(3)
    scene = [random_scene(rng, images=1, noise=0.1)[0] for _ in range(31)]
    make_kitti(tmp_path / "kitti", scene)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    # COCOEvaluator leaves the path of the labels that it was given first in the catalog
    register_all()
    yield scene, str(tmp_path / "output")
    register_all()


def batch(scene, numbers, classes=KITTI_CLASSES):
    """Inputs and a detector's outputs of these images."""
    outputs = []
    for _, detections in (scene[i] for i in numbers):
        instances = Instances((375, 1242))
        instances.pred_boxes = Boxes(torch.tensor([row[1:5] for row in detections]).reshape(-1, 4).float())
        instances.scores = torch.tensor([row[5] for row in detections]).float()
        instances.pred_classes = torch.tensor([classes.index(row[0]) for row in detections], dtype=torch.long)
        outputs.append(dict(instances=instances))
    return [dict(image_id=i) for i in numbers], outputs


def run(evaluator, scene, numbers):
    evaluator.reset()
    evaluator.process(*batch(scene, numbers))
    return evaluator.evaluate()


def written(scene, output_dir, folder="kitti_val_results"):
    """The scene with the detections of the result files."""
    result = []
    for number, (labels, _) in enumerate(scene):
        with open(os.path.join(output_dir, folder, f"{number:06d}.txt"), encoding="utf-8") as file:
            rows = [line.split() for line in file]
        assert all(len(row) == 16 for row in rows)
        result.append((labels, [(row[0], *map(float, row[4:8]), float(row[15])) for row in rows]))
    return result


def test_the_evaluator_evaluates_what_it_writes(kitti, caplog):
    scene, output_dir = kitti
    with caplog.at_level(logging.INFO):
        results = run(KITTIEvaluator("kitti_val", output_dir), scene, range(len(scene)))["kitti"]
    assert results == pytest.approx(brute_force(written(scene, output_dir)), abs=1e-6, nan_ok=True)
    assert sum(value > 1 for value in results.values()) > 5
    assert all(type(value) is float for value in results.values())
    (table,) = [record.message for record in caplog.records if "KITTI's AP" in record.message]
    row = next(line for line in table.splitlines() if line.startswith("| Car"))
    levels = [results[f"Car/{level}/AP{points}"] for points in (40, 11) for level in LEVELS]
    assert [float(cell) for cell in row.split("|")[2:-1]] == pytest.approx(levels, abs=0.005, nan_ok=True)


def test_what_was_written_is_what_was_found(kitti):
    scene, output_dir = kitti
    scene[0] = ([], [("Car", 387.63, 181.54, 1223.81, 203.12, 0.9), ("Tram", 0.1, 1 / 3, 1000.01, 374.0, 3e-5)])
    scene[1] = (scene[1][0], [])
    folder = os.path.join(output_dir, "kitti_val_results")
    os.makedirs(folder)
    with open(os.path.join(folder, "999999.txt"), "w", encoding="utf-8") as file:
        file.write("of a run on other frames\n")
    run(KITTIEvaluator("kitti_val", output_dir), scene, range(len(scene) - 1))
    assert sorted(os.listdir(folder)) == [f"{i:06d}.txt" for i in range(len(scene))]
    with open(os.path.join(folder, "000000.txt"), encoding="utf-8") as file:
        assert file.read() == (
            "Car -1 -1 -10 387.63 181.54 1223.81 203.12 -1 -1 -1 -1000 -1000 -1000 -10 0.9\n"
            "Tram -1 -1 -10 0.1 0.33333334 1000.01 374.0 -1 -1 -1 -1000 -1000 -1000 -10 3e-05\n"
        )
    for number in (1, len(scene) - 1):
        assert os.path.getsize(os.path.join(folder, f"{number:06d}.txt")) == 0
    lines, faults = parse_lines(Path(folder, "000000.txt").read_bytes())
    assert [(line.type, line.score) for line in lines] == [("Car", 0.9), ("Tram", 3e-5)]
    assert not faults
    for (_, ours), (_, theirs) in zip(scene[:-1], written(scene, output_dir)[:-1], strict=True):
        assert [row[0] for row in theirs] == [row[0] for row in ours]
        assert torch.equal(*(torch.tensor([row[1:] for row in rows], dtype=torch.float32) for rows in (ours, theirs)))


def test_labels_reach_the_metric_whatever_the_classes(kitti):
    """Objects, neighbours and regions are there once, in the file's order, though the detector knows no neighbour."""
    scene, output_dir = kitti
    classes = ("Cyclist", "Car")
    register_kitti("kitti_two", "kitti", "val", classes)
    try:
        evaluator = KITTIEvaluator("kitti_two", output_dir)
    finally:
        DatasetCatalog.remove("kitti_two")
        MetadataCatalog.remove("kitti_two")
    for labels, (rows, _) in zip(evaluator.labels, scene, strict=True):
        known = [row for row in rows if row[0] in (*classes, "Van", "DontCare")]
        assert labels.types.tolist() == [row[0] for row in known]
        assert labels.boxes.tolist() == [list(map(float, row[3:])) for row in known]
    scene = [(labels, [d for d in detections if d[0] in classes]) for labels, detections in scene]
    evaluator.reset()
    evaluator.process(*batch(scene, range(len(scene)), classes))
    results = evaluator.evaluate()["kitti"]
    expected = {k: v for k, v in brute_force(written(scene, output_dir, "kitti_two_results")).items() if k[:2] != "Pe"}
    assert results == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_data_set_without_kittis_classes_is_passed_over(kitti, caplog):
    _, output_dir = kitti
    register_kitti("kitti_trams", "kitti", "val", ("Tram", "Truck"))
    record = dict(DatasetCatalog.get("kitti_val")[0])
    record["annotations"] = [dict(bbox=[0, 0, 9, 9], bbox_mode=0, category_id=0, iscrowd=0)]
    DatasetCatalog.register("coco_like", lambda: [record])
    MetadataCatalog.get("coco_like").thing_classes = ["Car"]
    try:
        for name in ("kitti_trams", "coco_like"):
            evaluator = KITTIEvaluator(name, output_dir)
            assert f"{name} has no Car, Pedestrian, Cyclist in KITTI's format" in caplog.text
            assert run(evaluator, [([], [])], [0]) == {}
            assert not os.path.exists(output_dir)
    finally:
        for name in ("kitti_trams", "coco_like"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_images_of_another_data_set(kitti):
    scene, output_dir = kitti
    evaluator = KITTIEvaluator("kitti_val", output_dir)
    evaluator.reset()
    _, outputs = batch(scene, [0])
    with pytest.raises(UserError, match=r"kitti_val has no image 999: .*dataloader\.test"):
        evaluator.process([dict(image_id=999)], outputs)


def evaluate_share(rank, shares, scene, folder):
    """What one process of several gives."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(shares))
    try:
        results = run(KITTIEvaluator("kitti_val", f"{folder}/output_2"), scene, shares[rank])
    finally:
        dist.destroy_process_group()
    assert ("kitti" in results) == (rank == 0)
    return results


def test_two_processes_give_the_results_of_one(kitti, tmp_path):
    scene, output_dir = kitti
    one = run(KITTIEvaluator("kitti_val", output_dir), scene, range(len(scene)))["kitti"]
    # the last image of the second process is one that the first has already
    shares = [range(0, len(scene), 2), [*range(1, len(scene), 2), 0]]
    assert len(shares[0]) == len(shares[1])
    process = mp.get_context("spawn").Process(target=evaluate_share, args=(1, shares, scene, str(tmp_path)))
    process.start()
    two = evaluate_share(0, shares, scene, str(tmp_path))
    process.join()
    assert process.exitcode == 0
    assert two["kitti"] == pytest.approx(one, abs=0, nan_ok=True)
    assert written(scene, f"{tmp_path}/output_2") == written(scene, output_dir)


@pytest.mark.parametrize("name", ["kitti", "street"])
def test_configs_have_both_metrics(kitti, tmp_path, monkeypatch, name):
    scene, output_dir = kitti
    os.rename(tmp_path / "kitti", tmp_path / {"kitti": "kitti", "street": "street_scenes"}[name])
    cfg = LazyConfig.load(str(CONFIGS / "common" / "data" / f"{name}.py"))
    cfg.train = dict(output_dir=output_dir)
    classes = MetadataCatalog.get(f"{name}_val").thing_classes
    detections = [(labels, [d for d in found if d[0] in classes]) for labels, found in scene]
    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.reset()
    evaluator.process(*batch(detections, range(len(scene)), classes))
    results = evaluator.evaluate()
    assert list(results) == ["bbox", "kitti"]
    assert results["bbox"]["AP"] > 1
    assert len(results["kitti"]) == 18
    print_csv_format(results)
    with EventStorage() as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        assert storage.latest()["kitti/Car/hard/AP40"] == (results["kitti"]["Car/hard/AP40"], 0)
