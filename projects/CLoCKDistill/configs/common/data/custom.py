"""Your own images with boxes in COCO's JSON format, at a small size. Set the paths on the command line."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from .loaders import coco_evaluator, flip_and_jitter, test_loader, train_loader

dataloader = dict(
    train=train_loader(
        "coco:train.json",
        [
            *flip_and_jitter,
            L(T.ResizeShortestEdge)(short_edge_length=(112, 128, 144), max_size=256, sample_style="choice"),
        ],
        total_batch_size=8,
        num_workers=1,
    ),
    test=test_loader("coco:val.json", [L(T.ResizeShortestEdge)(short_edge_length=128, max_size=256)], num_workers=0),
    evaluator=coco_evaluator,
)
