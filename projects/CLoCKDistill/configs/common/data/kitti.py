"""KITTI's 2D object set, all eight classes, around its own height of 375 pixels."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from omegaconf import OmegaConf

from clockdistill.data import DetectionMapper
from clockdistill.evaluation.kitti import KITTIEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="kitti_train", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomFlip)(),
            L(T.ResizeShortestEdge)(
                short_edge_length=(288, 320, 352, 384, 416, 448), max_size=1600, sample_style="choice"
            ),
        ],
        image_format="RGB",
    ),
    total_batch_size=16,
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="kitti_val", filter_empty=False),
    mapper=L(DetectionMapper)(is_train=False, augmentations=[], image_format="RGB"),
    num_workers=4,
)

dataloader.evaluator = L(DatasetEvaluators)(
    evaluators=[
        L(COCOEvaluator)(
            dataset_name="${dataloader.test.dataset.names}",
            tasks=["bbox"],
            output_dir="${train.output_dir}",
            # the annotation file that a run before left in this folder may be of other labels
            allow_cached_coco=False,
        ),
        L(KITTIEvaluator)(dataset_name="${dataloader.test.dataset.names}", output_dir="${train.output_dir}"),
    ]
)
