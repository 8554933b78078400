"""Loaders and evaluators that the datasets share."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluators

from clockdistill.data import DetectionMapper, build_train_loader
from clockdistill.evaluation.coco import COCOEvaluator
from clockdistill.evaluation.kitti import KITTIEvaluator


def train_loader(name, augmentations, total_batch_size, num_workers):
    return L(build_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names=name, filter_empty=False),
        mapper=L(DetectionMapper)(is_train=True, augmentations=augmentations, image_format="RGB"),
        total_batch_size=total_batch_size,
        num_workers=num_workers,
        seed="${train.seed}",
    )


def test_loader(name, augmentations, num_workers):
    return L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names=name, filter_empty=False),
        mapper=L(DetectionMapper)(is_train=False, augmentations=augmentations, image_format="RGB"),
        num_workers=num_workers,
    )


flip_and_jitter = [
    L(T.RandomFlip)(),
    L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
    L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
]

coco_evaluator = L(COCOEvaluator)(
    dataset_name="${dataloader.test.dataset.names}",
    tasks=["bbox"],
    output_dir="${train.output_dir}",
)

coco_and_kitti_evaluator = L(DatasetEvaluators)(
    evaluators=[
        coco_evaluator,
        L(KITTIEvaluator)(dataset_name="${dataloader.test.dataset.names}", output_dir="${train.output_dir}"),
    ]
)
