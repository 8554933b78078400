"""Register the datasets that the configs use, and those named by their path."""

import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog

from ..errors import UserError
from .coco import register_coco
from .kitti import CLASS_SETS, parse_classes, register_kitti

STREET_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Cyclist")
USAGE = {
    "coco": "coco:ANNOTATIONS.json or coco:ANNOTATIONS.json:IMAGE_FOLDER",
    "kitti": "kitti:FOLDER:SPLIT or kitti:FOLDER:SPLIT:CLASSES",
}


def register_all() -> None:
    """Register the built-in datasets, which are in `$DETECTRON2_DATASETS` (default: `datasets`)."""
    street_hint = "set DETECTRON2_DATASETS to the parent of street_scenes, or run python datasets/make_street_scenes.py"
    for split in ("train", "val"):
        register_kitti(f"kitti_{split}", "kitti", split)
        register_kitti(f"kitti3_{split}", "kitti", split, CLASS_SETS["three"])
        register_kitti(f"street_{split}", "street_scenes", split, STREET_CLASSES, street_hint)


def register_by_name(names: str | Iterable[str]) -> None:
    """Register each dataset named by its path; skip all other names.

    `coco:ANNOTATIONS.json[:IMAGE_FOLDER]`: the images are by default in `images` next to the file if that folder
    exists, and next to the file otherwise.
    `kitti:FOLDER:SPLIT[:CLASSES]`: see `read_kitti` for FOLDER and SPLIT, `parse_classes` for CLASSES.
    Environment variables in a path, as in `coco:$DETECTRON2_DATASETS/mine/train.json`, are replaced.

    Raises:
        UserError: a name starts with `coco:` or `kitti:` but does not follow its pattern.
    """
    for name in [names] if isinstance(names, str) else names:
        scheme, *parts = os.path.expandvars(name).split(":", 3)
        if scheme not in USAGE or not parts or name in DatasetCatalog.list():
            continue
        if not all(parts) or len(parts) not in ((1, 2) if scheme == "coco" else (2, 3)):
            raise UserError(f"invalid dataset name {name}; write {USAGE[scheme]}")
        if scheme == "coco":
            parent = Path(parts[0]).parent
            images = parent / "images" if (parent / "images").is_dir() else parent
            register_coco(name, parts[0], parts[1] if len(parts) == 2 else str(images))
        else:
            folder, split, *classes = parts
            hint = "name the folder that contains training/image_2"
            register_kitti(name, os.path.abspath(folder), split, parse_classes(*classes), hint)
