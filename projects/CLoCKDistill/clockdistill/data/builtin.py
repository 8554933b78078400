"""The data sets that the configs name, below `$DETECTRON2_DATASETS` (`datasets` where it is not set), and those whose
name says where they are."""

from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog

from ..errors import UserError
from .coco import register_coco
from .kitti import CLASS_SETS, parse_classes, register_kitti, register_kitti_folder

STREET_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Cyclist")
USAGE = {
    "coco": "coco:ANNOTATIONS.json or coco:ANNOTATIONS.json:FOLDER_OF_IMAGES",
    "kitti": "kitti:FOLDER:SPLIT or kitti:FOLDER:SPLIT:CLASSES",
}


def register_all() -> None:
    for split in ("train", "val"):
        register_kitti(f"kitti_{split}", "kitti", split)
        register_kitti(f"kitti3_{split}", "kitti", split, CLASS_SETS["three"])
        register_kitti(
            f"street_{split}",
            "street_scenes",
            split,
            STREET_CLASSES,
            mend=", or draw it with python datasets/make_street_scenes.py",
        )


def register_by_name(names: str | Iterable[str]) -> None:
    """Register the data sets among these names that say where they are; of others nothing is asked.

    `coco:ANNOTATIONS.json[:FOLDER]`: images are in FOLDER, else in `images` beside the file, else beside the file.
    `kitti:FOLDER:SPLIT[:CLASSES]`: as in `load_kitti`, classes as in `parse_classes`.

    Raises:
        UserError: a name that begins like one of these and goes on otherwise.
    """
    for name in [names] if isinstance(names, str) else names:
        scheme, *parts = name.split(":", 3)
        if scheme not in USAGE or not parts or name in DatasetCatalog.list():
            continue
        if not all(parts) or len(parts) not in ((1, 2) if scheme == "coco" else (2, 3)):
            raise UserError(f"the data set {name} cannot be told: write {USAGE[scheme]}")
        if scheme == "coco":
            beside = Path(parts[0]).parent
            images = beside / "images" if (beside / "images").is_dir() else beside
            register_coco(name, parts[0], parts[1] if len(parts) == 2 else str(images))
        else:
            folder, split, *classes = parts
            register_kitti_folder(name, Path(folder), split, parse_classes(*classes))
