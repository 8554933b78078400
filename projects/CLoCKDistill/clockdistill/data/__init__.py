"""Datasets for Detectron2; importing this package registers the built-in ones."""

from .builtin import register_all, register_by_name
from .coco import register_coco
from .kitti import KITTI_CLASSES, read_kitti, register_kitti
from .loader import build_train_loader
from .mapper import DetectionMapper

register_all()

__all__ = [
    "KITTI_CLASSES",
    "DetectionMapper",
    "build_train_loader",
    "read_kitti",
    "register_by_name",
    "register_coco",
    "register_kitti",
]
