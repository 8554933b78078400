"""COCO 2017 with DETR's augmentation (arXiv:2005.12872, Sec. 4)."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from .loaders import coco_evaluator, test_loader, train_loader

dataloader = dict(
    train=train_loader(
        "coco_2017_train",
        [
            L(T.RandomFlip)(),
            L(T.RandomApply)(
                tfm_or_aug=L(T.AugmentationList)(
                    augs=[
                        L(T.ResizeShortestEdge)(short_edge_length=(400, 500, 600), sample_style="choice"),
                        L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
                    ]
                ),
                prob=0.5,
            ),
            L(T.ResizeShortestEdge)(
                short_edge_length=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
                max_size=1333,
                sample_style="choice",
            ),
        ],
        total_batch_size=16,
        num_workers=4,
    ),
    test=test_loader("coco_2017_val", [L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)], num_workers=4),
    evaluator=coco_evaluator,
)
