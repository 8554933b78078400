"""AP on resampled images against pycocotools on a data set with repeated images."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clockdistill.evaluation.bootstrap import match_detections, resampled_ap

IMAGES, CATEGORIES = 12, 3


@pytest.fixture(scope="module")
def data():
    """Random objects, some of them crowds, and detections near them or anywhere; the last category has no objects."""
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image in range(IMAGES):
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)]
            category = int(rng.integers(1, CATEGORIES))
            fields = dict(image_id=image, category_id=category, iscrowd=int(rng.random() < 0.15), area=box[2] * box[3])
            annotations.append(dict(id=len(annotations) + 1, bbox=box, **fields))
            for _ in range(rng.integers(0, 4)):
                near = (np.array(box) + rng.normal(0, 3, 4)).clip(1).tolist()
                detections.append(dict(image_id=image, category_id=category, bbox=near, score=rng.random()))
        for category in range(1, CATEGORIES + 1):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)]
            detections.append(dict(image_id=image, category_id=category, bbox=box, score=rng.random()))
    images = [dict(id=image, width=100, height=100) for image in range(IMAGES)]
    categories = [dict(id=category) for category in range(1, CATEGORIES + 1)]
    return dict(images=images, annotations=annotations, categories=categories), detections


def repeat(data, weights):
    """The data set in which each image occurs as often as its weight says."""
    truth, detections = data
    repeated = dict(truth, images=[], annotations=[])
    found = []
    for image, count in enumerate(weights):
        for _ in range(count):
            number = len(repeated["images"])
            repeated["images"].append(dict(truth["images"][image], id=number))
            for a in truth["annotations"]:
                if a["image_id"] == image:
                    repeated["annotations"].append(dict(a, image_id=number, id=len(repeated["annotations"]) + 1))
            found += [dict(d, image_id=number) for d in detections if d["image_id"] == image]
    return repeated, found


def pycocotools_ap(truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]


def write(truth, tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    return str(path)


def test_each_resample_has_the_ap_of_a_data_set_with_repeated_images(data, tmp_path):
    weights = np.random.default_rng(1).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=6)
    weights[0] = 1
    assert weights.max() > 2
    ap = resampled_ap(match_detections(write(data[0], tmp_path), data[1]), weights)
    expected = [pycocotools_ap(*repeat(data, row)) for row in weights]
    assert 5 < min(expected) < max(expected) < 80
    np.testing.assert_allclose(ap, expected, rtol=0, atol=1e-9)


def test_no_detections_have_an_ap_of_zero_and_no_objects_none(data, tmp_path):
    truth, _ = data
    evaluation = match_detections(write(truth, tmp_path), [])
    empty = np.zeros(IMAGES, int)
    assert resampled_ap(evaluation, np.ones((1, IMAGES), int)).tolist() == [0.0]
    assert np.isnan(resampled_ap(evaluation, empty[None])).all()
