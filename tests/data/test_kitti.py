import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from PIL import Image

import clockdistill.data  # noqa: F401  registers the datasets
from clockdistill.data import DetectionMapper, read_kitti, register_by_name
from clockdistill.errors import UserError
from helpers.models import CONFIGS

# lines of the benchmark's label files
CAR = "Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"
CYCLIST = "Cyclist 0.00 3 -1.65 676.60 163.95 688.98 193.93 1.86 0.60 2.02 4.59 1.32 45.84 -1.55"
MISC = "Misc 0.00 0 -1.82 804.79 167.34 995.43 327.94 1.63 1.48 2.37 3.23 1.59 8.55 -1.47"
DONT_CARE = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
CLASSES = ["Car", "Cyclist"]


def load(*args):
    data = read_kitti(*args)
    assert data.faults == []
    return data.records


def make_kitti(root, labels, size=(1224, 370)):
    """Write a KITTI dataset with one frame per label file's text."""
    for folder in ("image_2", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    for number, text in enumerate(labels):
        Image.new("RGB", size, (number, 100, 50)).save(root / "training" / "image_2" / f"{number:06d}.png")
        (root / "training" / "label_2" / f"{number:06d}.txt").write_text(text)
    return root


def write_splits(root, **splits):
    (root / "ImageSets").mkdir()
    for name, frames in splits.items():
        (root / "ImageSets" / f"{name}.txt").write_text("".join(f"{frame}\n" for frame in frames))


def test_real_lines_become_standard_dictionaries(tmp_path):
    make_kitti(tmp_path, [f"{CAR}\n{CYCLIST} 0.93\n", ""])
    write_splits(tmp_path, train=["000000", "000001"])
    first, empty = load(tmp_path, "train", CLASSES)
    assert first["file_name"].endswith("training/image_2/000000.png")
    assert (first["width"], first["height"]) == (1224, 370)
    car, cyclist = first["annotations"]
    assert car["bbox"] == [387.63, 181.54, 423.81, 203.12]
    assert (car["category_id"], cyclist["category_id"]) == (0, 1)
    assert (cyclist["truncated"], cyclist["occluded"], cyclist["iscrowd"]) == (0.0, 3, 0)
    assert empty["annotations"] == []


@pytest.mark.parametrize(
    ("classes", "objects", "ignored"),
    [
        ("all", "Car0 Van1 Pedestrian3 Person_sitting4 Misc7", [("DontCare", k) for k in range(8)]),
        (
            "three",
            "Car0 Pedestrian1",
            [("Van", 0), ("Person_sitting", 1), ("DontCare", 0), ("DontCare", 1), ("DontCare", 2)],
        ),
        ("Pedestrian+Misc", "Pedestrian0 Misc1", [("Person_sitting", 0), ("DontCare", 0), ("DontCare", 1)]),
        (
            "Van:Car+Car+Pedestrian:Person",
            "Car0 Van0 Pedestrian1",
            [("Person_sitting", 1), ("DontCare", 0), ("DontCare", 1)],
        ),
    ],
)
def test_class_sets(tmp_path, classes, objects, ignored):
    lines = [CAR.replace("Car", name) for name in ("Car", "Van", "Pedestrian", "Person_sitting")]
    make_kitti(tmp_path, ["\n".join([*lines, MISC, DONT_CARE])])
    write_splits(tmp_path, train=["000000"])
    name = f"kitti:{tmp_path}:train:{classes}"
    register_by_name(name)
    (record,) = DatasetCatalog.get(name)
    annotations = record["annotations"]
    assert objects.split() == [f"{a['type']}{a['category_id']}" for a in annotations if not a["iscrowd"]]
    assert ignored == [(a["type"], a["category_id"]) for a in annotations if a["iscrowd"]]
    assert len(MetadataCatalog.get(name).thing_classes) == {"all": 8, "three": 3}.get(classes, 2)

    mapped = DetectionMapper(is_train=True, augmentations=[T.RandomFlip(prob=1)], image_format="RGB")(record)
    assert len(mapped["instances"]) == len(objects.split())
    assert mapped["ignored"].gt_classes.tolist() == [label for _, label in ignored]
    left, top, right, bottom = annotations[-1]["bbox"]
    assert mapped["ignored"].gt_boxes.tensor[-1].tolist() == pytest.approx([1224 - right, top, 1224 - left, bottom])


def test_split_files_take_precedence(tmp_path):
    make_kitti(tmp_path, [CAR] * 3)
    write_splits(tmp_path, train=["000002"], val=["000000", "000001"])
    names = [[r["file_name"][-10:-4] for r in load(tmp_path, split, CLASSES)] for split in ("train", "val")]
    assert names == [["000002"], ["000000", "000001"]]


def test_the_default_split_is_fixed_at_80_to_20(tmp_path):
    make_kitti(tmp_path, [CAR] * 10)
    train, val = ({r["file_name"] for r in load(tmp_path, split, CLASSES)} for split in ("train", "val"))
    assert (len(train), len(val), len(train | val)) == (8, 2, 10)
    assert val == {r["file_name"] for r in load(tmp_path, "val", CLASSES)}


def test_the_mapper_names_an_image_with_broken_pixels(tmp_path):
    make_kitti(tmp_path, [CAR])
    write_splits(tmp_path, train=["000000"])
    image = tmp_path / "training" / "image_2" / "000000.png"
    noise = np.random.default_rng(0).integers(0, 256, (370, 1224, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    content = bytearray(image.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    image.write_bytes(content)
    (record,) = load(tmp_path, "train", CLASSES)
    with pytest.raises(UserError, match=r"cannot read image .*000000\.png: "):
        DetectionMapper(is_train=True, augmentations=[], image_format="RGB")(record)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("kitti_train", "DETECTRON2_DATASETS.*kitti/training"),
        ("street_val", "DETECTRON2_DATASETS.*make_street_scenes.py"),
    ],
)
def test_a_missing_data_set(tmp_path, monkeypatch, name, hint):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=rf"no KITTI dataset at {tmp_path}.*{hint}"):
        DatasetCatalog.get(name)


def test_the_environment_variable_is_read_on_loading(tmp_path, monkeypatch):
    make_kitti(tmp_path / "kitti", [CAR] * 5)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert len(DatasetCatalog.get("kitti_train")) == 4
    assert MetadataCatalog.get("kitti_train").thing_classes[:3] == ["Car", "Van", "Truck"]


def predictions(records, boxes_of):
    for record in records:
        instances = Instances((record["height"], record["width"]))
        boxes, labels = boxes_of(record)
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.pred_classes = torch.tensor(labels, dtype=torch.long)
        instances.scores = torch.linspace(0.9, 0.8, len(labels))
        yield [record], [{"instances": instances}]


# all exceed the least height of KITTI's moderate difficulty
ON_REGION, ON_VAN, ELSEWHERE = [510.0, 172.0, 580.0, 208.0], [100.0, 181.54, 136.18, 221.54], [10.0, 10.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("classes", "box", "label", "is_false_positive"),
    [
        ("all", ON_REGION, 0, False),
        ("all", ELSEWHERE, 0, True),
        ("three", ON_REGION, 0, False),
        ("three", ON_REGION, 1, False),
        ("three", ON_VAN, 0, False),
        ("three", ELSEWHERE, 0, True),
        ("Car+Van:Car", ON_VAN, 0, False),
    ],
)
def test_evaluators_ignore_detections_on_regions_and_neighbors(tmp_path, classes, box, label, is_false_positive):
    """A false positive would score higher than the true one, and so lower its precision."""
    car, region = CAR.replace("203.12", "209.12"), DONT_CARE.replace("190.13", "210.13")
    van = CAR.replace("Car", "Van").replace("387.63 181.54 423.81 203.12", " ".join(map(str, ON_VAN)))
    make_kitti(tmp_path / "data", [f"{car}\n{van}\n{region}\n"] * 5)
    name = f"kitti:{tmp_path}/data:val:{classes}"
    register_by_name(name)
    cfg = LazyConfig.load(str(CONFIGS / "common" / "data" / "kitti.py"))
    cfg.train = dict(output_dir=str(tmp_path / "output"))
    cfg.dataloader.test.dataset.names = name
    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.reset()

    def boxes_of(record):
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        # the detection in question already covers the Van
        objects = [a for a in objects if box != ON_VAN or a["type"] != "Van"]
        return [box, *(a["bbox"] for a in objects)], [label, *(a["category_id"] for a in objects)]

    for inputs, outputs in predictions(DatasetCatalog.get(name), boxes_of):
        evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    assert results["bbox"]["AP50"] == pytest.approx(100) or is_false_positive
    assert results["bbox"]["AP50"] < 80 or not is_false_positive
    # the only object reaches the first of 11 recall steps, with a precision of 1 or 1/2
    assert results["kitti"]["Car/moderate/AP11"] == pytest.approx(50 / 11 if is_false_positive else 100 / 11)


def test_the_mapper_returns_rgb(tmp_path):
    make_kitti(tmp_path, [CAR])
    write_splits(tmp_path, train=["000000"])
    (record,) = load(tmp_path, "train", CLASSES)
    image = DetectionMapper(is_train=False, augmentations=[], image_format="RGB")(record)["image"]
    assert image[:, 0, 0].tolist() == [0, 100, 50]
    assert detection_utils.read_image(record["file_name"], "RGB").shape == (370, 1224, 3)
