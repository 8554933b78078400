#!/usr/bin/env python
"""Run a detector over image files, folders of images or a video, and write what it finds: drawn, and as JSON.

Every image gives a drawn PNG of its name in the output folder, a video a drawn .mp4 of its name; small ones come out
enlarged. Where an image cannot be read, that is said before anything is written. predictions.json has
an entry for each prediction, as in COCO's results, in pixels of the image or frame: `file_name` and, of a video,
`frame` from 0; `category_id` and `category_name`; `bbox` as [x, y, width, height]; `score`.

Examples:
    predict.py --config-file configs/dino/dino_r18_kitti_12ep.py --output found --threshold 0.5 holiday.jpg photos/ \\
        train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
    predict.py --config-file configs/dino/dino_r18_kitti_12ep.py --output found drive.mp4 \\
        train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode, Instances
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from clockdistill.engine import load_config, load_model, run
from clockdistill.errors import UserError
from clockdistill.evaluation.pictures import draw_detections, write_png

IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(args: argparse.Namespace) -> None:
    # an override has an = and a path that exists is one in any case
    overrides = [text for text in args.inputs if "=" in text and not Path(text).exists()]
    images, videos = find_inputs([Path(text) for text in args.inputs if text not in overrides])
    output = Path(args.output)
    for path in images + videos:
        if path.parent.resolve() == output.resolve():
            raise UserError(f"{path} lies in the output folder, where it could be overwritten: set another --output")
    cfg = load_config(args.config_file, overrides)
    names = class_names(cfg)
    detector = load_model(cfg)
    augmentations = T.AugmentationList(instantiate(cfg.dataloader.test.mapper.augmentations))
    output.mkdir(parents=True, exist_ok=True)

    entries = []
    for path in tqdm(images, "images", disable=not images):
        image = read_image(path, "RGB")
        found = find(detector, augmentations, image, args.threshold)
        write_png(output / f"{path.stem}.png", draw_detections(image, found, names, args.threshold))
        entries += [dict(file_name=path.name) | entry for entry in describe(found, names)]
    for path in videos:
        rate, count = properties(path)
        unfinished, writer = output / f"{path.stem}.unfinished.mp4", None
        for number, image in enumerate(tqdm(frames(path), path.name, count)):
            found = find(detector, augmentations, image, args.threshold)
            drawn = draw_detections(image, found, names, args.threshold)
            if writer is None:
                codec = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(unfinished), codec, rate, drawn.shape[1::-1])
            writer.write(drawn[:, :, ::-1])
            entries += [dict(file_name=path.name, frame=number) | entry for entry in describe(found, names)]
        writer.release()
        unfinished.replace(output / f"{path.stem}.mp4")
    (output / "predictions.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def find_inputs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Image files and videos; whatever is no image by its name must open as a video.

    Raises:
        UserError: nothing at a path, a folder without images, images that cannot be read, no video, or two inputs that
            would be written as one.
    """
    images, videos = [], []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
            if not inside:
                raise UserError(f"folder {path} has no images: name one that has {', '.join(sorted(IMAGES))} files")
            images += inside
        elif not path.exists():
            raise UserError(f"{path} does not exist: name image files, folders of images or videos")
        elif path.suffix.lower() in IMAGES:
            images.append(path)
        elif properties(path) is None:
            raise UserError(f"{path} is no image and does not open as a video: convert it to .mp4")
        else:
            videos.append(path)
    if not images and not videos:
        raise UserError("there is nothing to look at: name image files, folders of images or videos")
    for group in (images, videos):
        for path in group:
            if twin := next((other for other in group if other != path and other.stem == path.stem), None):
                raise UserError(f"{path} and {twin} would be written as one file: give them to two runs")
    if broken := [str(path) for path in tqdm(images, "reading", leave=False, disable=not images) if is_broken(path)]:
        raise UserError(f"these images cannot be read: {', '.join(broken)}; copy them again or leave them out")
    return images, videos


def is_broken(path: Path) -> bool:
    """Whether an image cannot be decoded to its end, which for a JPEG only decoding tells."""
    try:
        read_image(path, "RGB")
    except (OSError, SyntaxError, ValueError):
        return True
    return False


def properties(path: Path) -> tuple[float, int] | None:
    """A video's frames a second and number of frames, or None where it has no first frame."""
    video = cv2.VideoCapture(str(path))
    is_readable, _ = video.read()
    rate, count = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return (rate or 25.0, count) if is_readable else None


def frames(path: Path) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB each."""
    video = cv2.VideoCapture(str(path))
    while (frame := video.read()[1]) is not None:
        yield frame[:, :, ::-1]
    video.release()


@torch.no_grad()
def find(detector: nn.Module, augmentations: T.AugmentationList, image: np.ndarray, threshold: float) -> Instances:
    """Predictions of at least `threshold` in pixels of an RGB image, on the CPU."""
    augmented = T.AugInput(image)
    augmentations(augmented)
    tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
    inputs = dict(image=tensor, height=image.shape[0], width=image.shape[1])
    found = detector([inputs])[0]["instances"].to("cpu")
    return found[found.scores >= threshold]


def describe(found: Instances, names: Sequence[str]) -> list[dict]:
    boxes = BoxMode.convert(found.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    return [
        dict(category_id=label, category_name=names[label], bbox=box, score=score)
        for box, label, score in zip(boxes, found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    ]


def class_names(cfg: DictConfig) -> list[str]:
    """Of the config's test data set, which is only read where its catalog does not know them yet."""
    names = cfg.dataloader.test.dataset.names
    name = names if isinstance(names, str) else names[0]
    if name not in DatasetCatalog.list():
        raise UserError(
            f"{name} is not in Detectron2's catalog: set dataloader.test.dataset.names to the model's data set"
        )
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_classes"):
        DatasetCatalog.get(name)
    if len(metadata.thing_classes) != cfg.model.num_classes:
        raise UserError(
            f"the model has {cfg.model.num_classes} classes and the data set {name}, which names them, "
            f"{len(metadata.thing_classes)}: set dataloader.test.dataset.names to the model's data set"
        )
    return metadata.thing_classes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="its test set names the classes")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for pictures, video and JSON")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score that is drawn and written (0.3)")
    parser.add_argument(
        "inputs", nargs="+", metavar="PATH | key=value", help="what to look at; overrides of the config"
    )
    parser.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
