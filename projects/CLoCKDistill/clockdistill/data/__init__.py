"""Data sets for Detectron2's catalog; importing this package registers the built-in ones."""

from .builtin import register_all
from .kitti import KITTI_CLASSES, load_kitti, register_kitti
from .mapper import DetectionMapper

register_all()

__all__ = ["KITTI_CLASSES", "DetectionMapper", "load_kitti", "register_kitti"]
