"""KITTI's 2D object dataset, all eight classes, at sizes around its own height of 375 pixels."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from .loaders import coco_and_kitti_evaluator, test_loader, train_loader

dataloader = dict(
    train=train_loader(
        "kitti_train",
        [
            L(T.RandomFlip)(),
            L(T.ResizeShortestEdge)(
                short_edge_length=(288, 320, 352, 384, 416, 448), max_size=1600, sample_style="choice"
            ),
        ],
        total_batch_size=16,
        num_workers=4,
    ),
    test=test_loader("kitti_val", [], num_workers=4),
    evaluator=coco_and_kitti_evaluator,
)
