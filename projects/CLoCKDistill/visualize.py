#!/usr/bin/env python
"""Draw what detectors find and look at on the test set of a config: named images, the worst ones, or the first ones.

Every image gives three pictures: comparison_NAME.png, the ground truth and what each model finds, with what is wrong
and what was missed; attention_NAME.png, where each model's encoder memory is strong and where the query attends that
finds an object; masks_NAME.png, the location and scale masks of the memory loss. Where the whole test set is looked
at, precision_recall.png is drawn too, and curves.png of those models that have a metrics.json beside their checkpoint.

The worst images are those with the lowest F1 = 2 right / (2 right + wrong + missed) of predictions of at least
--threshold, matched to objects of their class at an IoU of 0.5; of several models, the mean.

Examples:
    visualize.py --config-file configs/dino/dino_r18_kitti_12ep.py --output pictures --image 000008 --image 000134 \\
        train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
    visualize.py --config-file configs/dino/dino_r18_kitti_12ep.py --output pictures --worst 10 \\
        --model Teacher=configs/dino/dino_r50_kitti_12ep.py:output/dino_r50_kitti_12ep/model_final.pth \\
        --model Student=configs/dino/dino_r18_kitti_12ep.py:output/dino_r18_kitti_12ep/model_final.pth
"""

import argparse
import copy
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import nn
from torchvision.ops import box_convert
from tqdm import tqdm

import clockdistill.data  # noqa: F401  its import registers the data sets
from clockdistill.distillation.memory import location_and_scale_weights
from clockdistill.engine import NamedModel, load_config, load_model, parse_models, run
from clockdistill.errors import UserError
from clockdistill.evaluation.matching import evaluate_coco, match, worst_images
from clockdistill.evaluation.pictures import (
    draw_attention,
    draw_comparison,
    draw_masks,
    ground_truth,
    plot_curves,
    plot_precision_recall,
    write_png,
)
from clockdistill.modeling import Target
from clockdistill.modeling.observe import valid_shapes, view


class Model:
    """A detector with the test-time augmentations of its own config."""

    def __init__(self, cfg: DictConfig):
        self.detector: nn.Module = load_model(cfg)
        self.mapper = instantiate(cfg.dataloader.test.mapper)

    def inputs(self, record: dict) -> dict:
        return self.mapper(copy.deepcopy(record))

    @torch.no_grad()
    def find(self, record: dict) -> Instances:
        """What it finds in an image, on the CPU."""
        return self.detector([self.inputs(record)])[0]["instances"].to("cpu")


def main(args: argparse.Namespace) -> None:
    named = parse_models(args.model, "--model")
    cfg = load_config(args.config_file, args.opts)
    if not named:
        named = [NamedModel("Predictions", args.config_file, cfg.train.init_checkpoint)]
        models = {named[0].name: Model(cfg)}
    else:
        # the number of classes is the test set's, which the command line may have set
        classes = f"model.num_classes={cfg.model.num_classes}"
        configs = {m.name: load_config(m.config, [f"train.init_checkpoint={m.checkpoint}", classes]) for m in named}
        models = {name: Model(config) for name, config in configs.items()}
    records = instantiate(cfg.dataloader.test.dataset)
    class_names = MetadataCatalog.get(cfg.dataloader.test.dataset.names).thing_classes
    for m in named:
        detector = models[m.name].detector
        if detector.num_classes != len(class_names):
            raise UserError(
                f"the model of {m.config} has {detector.num_classes} classes and the data set {len(class_names)}: "
                "compare models of one data set"
            )
    chosen = named_images(records, args.image)
    os.makedirs(args.output, exist_ok=True)
    output = Path(args.output)

    if args.worst or args.precision_recall:
        found = {name: [model.find(record) for record in tqdm(records, name)] for name, model in models.items()}
        evaluations = {name: evaluate_coco(records, f, len(class_names)) for name, f in found.items()}
        plot_precision_recall(evaluations, class_names, output / "precision_recall.png")
        matches = [match(records, f, len(class_names), args.threshold) for f in found.values()]
        chosen = chosen or [records[i] for i in worst_images(matches, args.worst)]
    runs = {m.name: str(Path(m.checkpoint).with_name("metrics.json")) for m in named}
    runs = {name: path for name, path in runs.items() if os.path.isfile(path)}
    if runs:
        plot_curves(runs, str(output / "curves.png"))

    for record in tqdm(chosen or records[: args.first], "pictures"):
        save_pictures(models, record, class_names, output, args.threshold, args.object)


def named_images(records: list[dict], names: Sequence[str]) -> list[dict]:
    """Records of image files, by their names without folder and ending."""
    by_name = {Path(record["file_name"]).stem: record for record in records}
    for name in names:
        if name not in by_name:
            raise UserError(f"--image {name} is not in the test set, whose images are {', '.join([*by_name][:3])}, …")
    return [by_name[name] for name in names]


def save_pictures(
    models: dict[str, Model],
    record: dict,
    class_names: Sequence[str],
    output: Path,
    threshold: float,
    number: int | None,
) -> None:
    image, name = read_image(record["file_name"], "RGB"), Path(record["file_name"]).stem
    found = {title: model.find(record) for title, model in models.items()}
    write_png(output / f"comparison_{name}.png", draw_comparison(image, record, found, class_names, threshold))

    truth, _ = ground_truth(record, image.shape[:2])
    if len(truth) == 0:
        return
    if number is None:
        number = int(truth.gt_boxes.area().argmax())
    elif number >= len(truth):
        raise UserError(f"--object {number} is not in image {name}, which has {len(truth)}, counted from 0")
    height, width = image.shape[:2]
    boxes = truth.gt_boxes.tensor
    targets = Target(truth.gt_classes, box_convert(boxes / torch.tensor([width, height] * 2), "xyxy", "cxcywh"))
    target = Target(targets.labels[number, None], targets.boxes[number, None])
    views = {title: view(model.detector, model.inputs(record), target) for title, model in models.items()}
    picture = draw_attention(image, views, boxes[number].tolist(), class_names[target.labels.item()])
    write_png(output / f"attention_{name}.png", picture)

    masks = memory_masks(next(iter(models.values())), record, targets)
    write_png(output / f"masks_{name}.png", draw_masks(image, *masks, boxes.tolist()))


@torch.no_grad()
def memory_masks(model: Model, record: dict, targets: Target) -> tuple[list, list]:
    """M * S and (1 - M) * S of every level, without padding, as arrays (H_l, W_l)."""
    detector = model.detector
    memory = detector.encode(detector.preprocess([model.inputs(record)]))
    on_device = Target(targets.labels.to(detector.device), targets.boxes.to(detector.device))
    shapes = memory.spatial_shapes.tolist()
    masks = []
    for weights in location_and_scale_weights(memory, [on_device]):
        levels = weights[0].cpu().split([h * w for h, w in shapes])
        valid = valid_shapes(memory, 0)
        masks.append([x.view(shape)[:h, :w].numpy() for x, shape, (h, w) in zip(levels, shapes, valid, strict=True)])
    return tuple(masks)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="its test set is drawn")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=CONFIG:CHECKPOINT",
        help="a model to draw, in place of the config's own; may be repeated",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--image", action="append", default=[], metavar="NAME", help="an image file; may be repeated")
    which.add_argument("--worst", type=int, default=0, metavar="N", help="the N images with the lowest F1")
    which.add_argument("--first", type=int, default=10, metavar="N", help="the first N images (10)")
    parser.add_argument("--precision-recall", action="store_true", help="look at the whole test set in any case")
    parser.add_argument("--object", type=int, metavar="N", help="whose query is drawn (the largest object's)")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score that is drawn")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    parser.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
