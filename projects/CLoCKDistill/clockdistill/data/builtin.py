"""The data sets that the configs name, below `$DETECTRON2_DATASETS` (`datasets` where it is not set)."""

from .kitti import register_kitti

STREET_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Cyclist")


def register_all() -> None:
    for split in ("train", "val"):
        register_kitti(f"kitti_{split}", "kitti", split)
        register_kitti(
            f"street_{split}",
            "street_scenes",
            split,
            STREET_CLASSES,
            mend=", or draw it with python datasets/make_street_scenes.py",
        )
