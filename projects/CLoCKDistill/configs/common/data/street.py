"""The demo's street scenes at their own size, 320x96."""

from .loaders import coco_and_kitti_evaluator, flip_and_jitter, test_loader, train_loader

dataloader = dict(
    train=train_loader("street_train", flip_and_jitter, total_batch_size=8, num_workers=1),
    test=test_loader("street_val", [], num_workers=0),
    evaluator=coco_and_kitti_evaluator,
)
