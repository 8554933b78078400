#!/usr/bin/env python
"""Run a detector on images and videos, and save its predictions as JSON and as pictures.

Every image becomes a PNG in the output folder, and every video an MP4, with the predictions drawn (small images are
enlarged). predictions.jsonl has one line per image or frame, written as soon as the image or frame is done:

    {"file_name": "drive.mp4", "frame": 0, "instances":
     [{"category_id": 0, "category_name": "Car", "bbox": [x, y, width, height], "score": 0.9}, ...]}

`frame` counts from 0 and is absent for images; boxes are in pixels. After Ctrl-C, predictions.jsonl and the MP4 are
complete up to the last frame.

Class names and the test-time image size are read from the checkpoint, which takes precedence over the config. If it has
none, because another codebase saved it, they are taken from the config's test dataset.

Examples:
    predict.py --config-file configs/dino/dino_r18_kitti_12ep.py --input holiday.jpg photos/ --output predictions \\
        --threshold 0.5 --opts train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
    predict.py --config-file configs/dino/dino_r18_kitti_12ep.py --input drive.mp4 --output predictions \\
        --opts train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
    predict.py --model student.onnx --input photos/ --output predictions
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode, Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from clockdistill.engine import (
    dataset_names,
    load_config,
    load_model_and_metadata,
    load_records,
    prepare_inference,
    run,
)
from clockdistill.engine.arguments import score
from clockdistill.engine.output_dir import make_output_dir
from clockdistill.errors import UserError
from clockdistill.evaluation.pictures import draw_detections, write_png
from clockdistill.export import ExportedDetector

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(args: argparse.Namespace) -> None:
    images, videos = collect_inputs([Path(text) for text in args.input])
    output = Path(args.output)
    for path in images + videos:
        if output.resolve() in (path.parent.resolve(), path.resolve().parent):  # a link, or what it points to
            raise UserError(f"{path} is in the output folder and could be overwritten: choose another --output")
    if args.model is not None:
        if args.config_file is not None or args.opts:
            raise UserError("--model takes all settings from the exported file: leave out --config-file and --opts")
        detector = ExportedDetector(args.model)
        class_names = detector.metadata["class_names"]
        augmentations = get_augmentations(OmegaConf.create(), detector.metadata)
    elif args.config_file is not None:
        cfg = load_config(args.config_file, args.opts)
        detector, metadata = load_model_and_metadata(cfg)
        prepare_inference(detector, cfg)
        class_names = get_class_names(cfg, metadata)
        augmentations = get_augmentations(cfg, metadata)
    else:
        raise UserError("no model: give --model with an exported file, or --config-file and train.init_checkpoint")
    make_output_dir(output, "--output")

    unreadable = []
    # line buffering: every line is on disk once it is written
    with (output / "predictions.jsonl").open("w", encoding="utf-8", buffering=1) as file:

        def process(image: np.ndarray, **source: str | int) -> np.ndarray:
            instances = predict(detector, augmentations, image, args.threshold)
            print(json.dumps(source | dict(instances=to_json(instances, class_names))), file=file)
            return draw_detections(image, instances, class_names, args.threshold)

        for path in tqdm(images, "images", disable=not images):
            try:
                image = read_image(path, "RGB")
            except (OSError, SyntaxError, ValueError):  # all three come from Pillow
                unreadable.append(str(path))
                continue
            write_png(output / f"{path.stem}.png", process(image, file_name=path.name))
        for path in videos:
            video = cv2.VideoCapture(str(path))
            frames = enumerate(tqdm(read_frames(video), path.name, int(video.get(cv2.CAP_PROP_FRAME_COUNT))))
            pictures = (process(image, file_name=path.name, frame=number) for number, image in frames)
            write_video(output / f"{path.stem}.mp4", pictures, video.get(cv2.CAP_PROP_FPS) or 25.0)
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(images)} images cannot be read ({', '.join(unreadable)}): copy them again; all "
            f"other predictions are in {output}"
        )
    print(f"predictions: {output}")


def collect_inputs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Sort input paths into images and videos, without decoding more than the first frame of each video.

    Args:
        paths: image files, folders of images, or videos; a file without an image's suffix must open as a video.

    Raises:
        UserError: a path does not exist, a folder has no images, a file is neither an image nor a video, or two
            inputs would be written to the same file.
    """
    images, videos = [], []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UserError(
                    f"folder {path} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}): give another folder"
                )
            images += inside
        elif not path.exists():
            raise UserError(f"{path} does not exist: give image files, folders of images, or videos")
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        elif not cv2.VideoCapture(str(path)).read()[0]:
            raise UserError(f"{path} is not an image and does not open as a video: convert it to .mp4")
        else:
            videos.append(path)
    images, videos = list(dict.fromkeys(images)), list(dict.fromkeys(videos))
    for group in (images, videos):
        by_stem = {}
        for path in group:
            if (other := by_stem.setdefault(path.stem, path)) != path:
                raise UserError(f"{other} and {path} would be written to the same file: use a separate --output")
    return images, videos


def get_class_names(cfg: DictConfig, metadata: dict) -> list[str]:
    """Class names from a checkpoint's metadata, else of the config's test dataset.

    The dataset is only loaded if its class names are not in Detectron2's catalog yet.
    """
    source, class_names = "checkpoint", metadata.get("class_names")
    if class_names is None:
        name = next(iter(dataset_names(cfg, "test")), None)
        if name not in DatasetCatalog.list():
            raise UserError(
                f"the checkpoint has no class names, and dataset {name} is not in Detectron2's catalog: set "
                "dataloader.test.dataset.names to the dataset that the model was trained on"
            )
        if not MetadataCatalog.get(name).get("thing_classes"):
            load_records(cfg, "test")
        source, class_names = f"dataset {name}", MetadataCatalog.get(name).thing_classes
    if len(class_names) != cfg.model.num_classes:
        raise UserError(
            f"the model has {cfg.model.num_classes} classes, but the {source} names {len(class_names)}: use a config "
            "and a checkpoint for the same dataset"
        )
    return list(class_names)


def get_augmentations(cfg: DictConfig, metadata: dict) -> T.AugmentationList:
    """Test-time resizing from a checkpoint's metadata, else the augmentations of the config's test mapper."""
    if "resize" in metadata:
        resize = metadata["resize"]
        return T.AugmentationList([] if resize is None else [T.ResizeShortestEdge(**resize)])
    augmentations = OmegaConf.select(cfg, "dataloader.test.mapper.augmentations")
    if augmentations is None:
        raise UserError(
            "neither the checkpoint nor the config defines the test-time resizing: "
            "set dataloader.test.mapper.augmentations"
        )
    return T.AugmentationList(instantiate(augmentations))


def read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield the frames of a video as (H, W, 3) uint8 RGB."""
    while (frame := video.read()[1]) is not None:
        yield frame[:, :, ::-1]


def write_video(path: Path, pictures: Iterable[np.ndarray], frames_per_second: float) -> None:
    """Write (H, W, 3) uint8 RGB pictures as an MP4 that plays even if making them is interrupted.

    Raises:
        UserError: the file cannot be written.
    """
    writer = None
    try:
        for picture in pictures:
            if writer is None:
                codec = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(path), codec, frames_per_second, picture.shape[1::-1])
                if not writer.isOpened():
                    raise UserError(f"cannot write {path}: check that its folder is writable and has free space")
            writer.write(picture[:, :, ::-1])
    finally:
        if writer is not None:
            writer.release()


@torch.no_grad()
def predict(detector: nn.Module, augmentations: T.AugmentationList, image: np.ndarray, threshold: float) -> Instances:
    """Predictions with a score of at least `threshold`, in pixels of a (H, W, 3) uint8 RGB image, on the CPU."""
    augmented = T.AugInput(image)
    augmentations(augmented)
    tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
    inputs = dict(image=tensor, height=image.shape[0], width=image.shape[1])
    instances = detector([inputs])[0]["instances"].to("cpu")
    return instances[instances.scores >= threshold]


def to_json(instances: Instances, class_names: Sequence[str]) -> list[dict]:
    """Instances as in COCO's results, with class names."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    return [
        dict(category_id=label, category_name=class_names[label], bbox=box, score=score)
        for box, label, score in zip(boxes, instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
    ]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="FILE", help="LazyConfig file of the model")
    parser.add_argument(
        "--model", metavar="FILE", help="model exported by export.py (.onnx, .xml, .pt2), instead of a config"
    )
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="image files, folders of images, or videos"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for pictures, videos and JSON")
    parser.add_argument(
        "--threshold", type=score, default=0.3, help="minimum score for predictions to be saved (default: 0.3)"
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="overrides of the config, such as the checkpoint"
    )
    parser.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
