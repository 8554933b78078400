"""Street scenes at their own size, 320x96."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from omegaconf import OmegaConf

from clockdistill.data import DetectionMapper
from clockdistill.evaluation.kitti import KITTIEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="street_train", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomFlip)(),
            L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
            L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
        ],
        image_format="RGB",
    ),
    total_batch_size=8,
    num_workers=1,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="street_val", filter_empty=False),
    mapper=L(DetectionMapper)(is_train=False, augmentations=[], image_format="RGB"),
    num_workers=0,
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
