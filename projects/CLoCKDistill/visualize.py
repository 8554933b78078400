#!/usr/bin/env python
"""Draw the predictions, attention and training curves of detectors on the test set of a config.

The output folder receives three pictures per image:
    comparison_NAME.png   the ground truth and each model's predictions, with false positives and false negatives
    attention_NAME.png    each model's encoder memory, and what the query for one object attends to
    masks_NAME.png        the location and scale masks of the memory loss
and, for all images together:
    precision_recall.png  with --worst or --precision-recall, which evaluate the whole test set
    curves.png            for models with a metrics.json in the folder of their checkpoint

--worst selects the images with the lowest F1 = 2 TP / (2 TP + FP + FN), averaged over models. Predictions of at least
--threshold are matched to objects of their class at an IoU of 0.5.

Examples:
    visualize.py --config-file configs/dino/dino_r18_kitti_12ep.py --output pictures --image 000008 --image 000134 \\
        --opts train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
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

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import nn
from torchvision.ops import box_convert
from tqdm import tqdm

import clockdistill.data  # noqa: F401  registers the datasets
from clockdistill.distillation.memory import location_and_scale_weights
from clockdistill.engine import ModelSpec, dataset_names, load_config, load_model, load_records, parse_model_specs, run
from clockdistill.engine.arguments import natural, score
from clockdistill.engine.observe import observe_object, split_levels
from clockdistill.engine.output_dir import make_output_dir
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
from clockdistill.modeling import Target, Targets


class Model:
    """A detector with the test-time augmentations of its config."""

    def __init__(self, cfg: DictConfig):
        self.detector: nn.Module = load_model(cfg)
        self.mapper = instantiate(cfg.dataloader.test.mapper)

    def inputs(self, record: dict) -> dict:
        return self.mapper(copy.deepcopy(record))

    @torch.no_grad()
    def predict(self, record: dict) -> Instances:
        """Predict the objects of an image, on the CPU."""
        return self.detector([self.inputs(record)])[0]["instances"].to("cpu")


def main(args: argparse.Namespace) -> None:
    specs = parse_model_specs(args.model, "--model")
    cfg = load_config(args.config_file, args.opts)
    if specs:
        # all models have the number of classes of the test set, which the command line may have set
        classes = f"model.num_classes={cfg.model.num_classes}"
        cfgs = [load_config(spec.config_file, [f"train.init_checkpoint={spec.checkpoint}", classes]) for spec in specs]
    else:
        specs, cfgs = [ModelSpec("Predictions", args.config_file, cfg.train.init_checkpoint)], [cfg]
    models = {spec.name: Model(model_cfg) for spec, model_cfg in zip(specs, cfgs, strict=True)}
    records = load_records(cfg, "test")
    class_names = MetadataCatalog.get(dataset_names(cfg, "test")[0]).thing_classes
    for spec in specs:
        num_classes = models[spec.name].detector.num_classes
        if num_classes != len(class_names):
            raise UserError(
                f"the model of {spec.config_file} has {num_classes} classes, but the dataset has {len(class_names)}: "
                "use models of this dataset"
            )
    chosen = select_images(records, args.image)
    output = Path(args.output)
    make_output_dir(output, "--output")

    if args.worst or args.precision_recall:
        predictions = {name: [model.predict(r) for r in tqdm(records, name)] for name, model in models.items()}
        evaluations = {name: evaluate_coco(records, p, len(class_names)) for name, p in predictions.items()}
        plot_precision_recall(evaluations, class_names, output / "precision_recall.png")
        matches = [match(records, p, len(class_names), args.threshold) for p in predictions.values()]
        chosen = chosen or [records[i] for i in worst_images(matches, args.worst)]
    runs = {spec.name: str(Path(spec.checkpoint).with_name("metrics.json")) for spec in specs}
    runs = {name: path for name, path in runs.items() if os.path.isfile(path)}
    if runs:
        plot_curves(runs, str(output / "curves.png"))

    for record in tqdm(chosen or records[: args.first], "pictures"):
        save_pictures(models, record, class_names, output, args.threshold, args.object)
    print(f"pictures: {output}")


def select_images(records: list[dict], names: Sequence[str]) -> list[dict]:
    """Select the records of images by their file names without folder and suffix."""
    by_name = {Path(record["file_name"]).stem: record for record in records}
    for name in names:
        if name not in by_name:
            raise UserError(f"--image {name} is not in the test set: use names such as {', '.join([*by_name][:3])}")
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
    predictions = {title: model.predict(record) for title, model in models.items()}
    write_png(output / f"comparison_{name}.png", draw_comparison(image, record, predictions, class_names, threshold))

    truth, _ = ground_truth(record, image.shape[:2])
    if len(truth) == 0:
        return
    if number is None:
        number = int(truth.gt_boxes.area().argmax())
    elif number >= len(truth):
        raise UserError(f"--object {number} is not in image {name}: it has {len(truth)} objects, counted from 0")
    height, width = image.shape[:2]
    boxes = truth.gt_boxes.tensor
    objects = Target(truth.gt_classes, box_convert(boxes / torch.tensor([width, height] * 2), "xyxy", "cxcywh"))
    target = Target(objects.labels[number, None], objects.boxes[number, None])
    views = {title: observe_object(model.detector, model.inputs(record), target) for title, model in models.items()}
    picture = draw_attention(image, views, boxes[number].tolist(), class_names[target.labels.item()])
    write_png(output / f"attention_{name}.png", picture)

    masks = memory_masks(next(iter(models.values())), record, objects)
    write_png(output / f"masks_{name}.png", draw_masks(image, *masks, boxes.tolist()))


@torch.no_grad()
def memory_masks(model: Model, record: dict, objects: Target) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Compute M * S and (1 - M) * S of the memory loss, one map (H_l, W_l) per level, without padding."""
    detector = model.detector
    memory = detector.encode(detector.preprocess([model.inputs(record)]))
    targets = Targets([Target(objects.labels.to(detector.device), objects.boxes.to(detector.device))])
    on_objects, on_background = location_and_scale_weights(memory, targets)
    return tuple([x.numpy() for x in split_levels(weights[0], memory)] for weights in (on_objects, on_background))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig file with the test set")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=CONFIG:CHECKPOINT",
        help="a model to draw, instead of the model of --config-file; can be repeated",
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--image", action="append", default=[], metavar="NAME", help="draw this image; can be repeated")
    images.add_argument("--worst", type=natural, default=0, metavar="N", help="draw the N images with the lowest F1")
    images.add_argument("--first", type=natural, default=10, metavar="N", help="draw the first N images (default: 10)")
    parser.add_argument("--precision-recall", action="store_true", help="plot precision-recall curves")
    parser.add_argument(
        "--object", type=int, metavar="N", help="number of the object in attention_NAME.png (default: the largest)"
    )
    parser.add_argument("--threshold", type=score, default=0.3, help="minimum score to draw (default: 0.3)")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="overrides of the config, such as the checkpoint"
    )
    parser.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
