"""Images of one's own with boxes in COCO's JSON, at a small size; the command line gives the paths."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf

from clockdistill.data import DetectionMapper

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco:train.json", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomFlip)(),
            L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
            L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
            L(T.ResizeShortestEdge)(short_edge_length=(112, 128, 144), max_size=256, sample_style="choice"),
        ],
        image_format="RGB",
    ),
    total_batch_size=8,
    num_workers=1,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco:val.json", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=128, max_size=256)],
        image_format="RGB",
    ),
    num_workers=0,
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}",
    tasks=["bbox"],
    output_dir="${train.output_dir}",
    # the annotation file that a run before left in this folder may be of other labels
    allow_cached_coco=False,
)
