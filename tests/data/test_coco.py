"""COCO's format, compared with Detectron2's own reader."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

from clockdistill.data import register_by_name


@pytest.fixture
def folder(tmp_path):
    """Twelve images in `images` and their annotations, about a third of them crowds, with gaps between the ids."""
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "part").mkdir(parents=True)
    images, annotations = [], []
    for number in range(12):
        width, height = rng.integers(40, 90, 2).tolist()
        name = f"part/{number}.jpg" if number % 2 else f"{number}.jpg"
        Image.new("RGB", (width, height)).save(tmp_path / "images" / name)
        images.append(dict(id=100 - number, file_name=name, width=width, height=height))
        for _ in range(int(rng.integers(0, 4))):
            box = [*rng.uniform(0, 20, 2).round(1), *rng.uniform(1, 20, 2).round(1)]
            category, is_crowd = int(rng.choice([2, 5, 90])), int(rng.random() < 0.3)
            annotations.append(
                dict(id=7 + len(annotations), image_id=100 - number, category_id=category, bbox=box, iscrowd=is_crowd)
            )
    categories = [dict(id=90, name="last"), dict(id=2, name="first"), dict(id=5, name="middle")]
    rng.shuffle(annotations)
    content = dict(info={}, images=images, annotations=annotations, categories=categories)
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def comparable(records):
    keys = ("bbox", "bbox_mode", "category_id", "iscrowd")
    return sorted(
        (r["image_id"], r["file_name"], r["width"], r["height"], sorted([a[k] for k in keys] for a in r["annotations"]))
        for r in records
    )


def test_environment_variables_in_a_name_are_replaced(folder, monkeypatch):
    monkeypatch.setenv("MY_DATA", str(folder))
    for name in ("coco:$MY_DATA/train.json", "coco:$MY_DATA/train.json:$MY_DATA/images"):
        register_by_name(name)
        records = DatasetCatalog.get(name)
        assert all(Path(record["file_name"]).is_relative_to(folder / "images") for record in records)


@pytest.mark.parametrize("layout", ["images", "same folder", "named folder"])
def test_records_equal_detectron2s(folder, layout):
    images, name = folder / "images", f"coco:{folder}/train.json"
    if layout == "same folder":
        shutil.copytree(images, folder, dirs_exist_ok=True)
        shutil.rmtree(images)
        images = folder
    elif layout == "named folder":
        images = images.rename(folder / "pictures")
        name += f":{images}"
    register_by_name([name])
    records = DatasetCatalog.get(name)
    expected = load_coco_json(str(folder / "train.json"), str(images), "detectron2_coco")
    try:
        assert len(records) == 12
        assert comparable(records) == comparable(expected)
        for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
            assert MetadataCatalog.get(name).get(key) == MetadataCatalog.get("detectron2_coco").get(key)
    finally:
        MetadataCatalog.remove("detectron2_coco")
