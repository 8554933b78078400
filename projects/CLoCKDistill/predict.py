#!/usr/bin/env python
"""Run a detector over images, folders of images and videos: each is written with boxes drawn on it, and
predictions.json holds what was found in all of them, as COCO writes results, with `file` and, of a video, `frame`.

Examples:
    predict.py --config-file configs/dino/dino_r18_kitti_12ep.py --input street.png drive/ --output found \\
        train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
    predict.py --config-file configs/dino/dino_r18_kitti_12ep.py --input drive.mp4 --output found --threshold 0.5 \\
        train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode, Instances
from omegaconf import DictConfig
from tqdm import tqdm

import clockdistill.data  # noqa: F401  its import registers the data sets
from clockdistill.engine import load_config, load_model, run
from clockdistill.errors import UserError
from clockdistill.evaluation.pictures import draw_detections, write_png

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
FRAME_RATE = 25.0  # of a video that does not tell


class Predictor:
    """A config's model and test-time augmentations, for RGB images (H, W, 3) of uint8."""

    def __init__(self, cfg: DictConfig):
        self.model = load_model(cfg)
        self.augmentations = T.AugmentationList(instantiate(cfg.dataloader.test.mapper.augmentations))
        names = MetadataCatalog.get(cfg.dataloader.test.dataset.names).get("thing_classes")
        self.class_names = names or [f"class {label}" for label in range(self.model.num_classes)]

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """On the CPU, boxes in pixels of the image."""
        augmented = T.AugInput(image)
        self.augmentations(augmented)
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        return self.model([dict(image=tensor, height=height, width=width)])[0]["instances"].to("cpu")


def main(args: argparse.Namespace) -> None:
    images, videos = find_inputs(args.input)
    predict = Predictor(load_config(args.config_file, args.opts))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    entries = []

    def draw(image: np.ndarray, **source) -> np.ndarray:
        instances = predict(image)
        instances = instances[instances.scores >= args.threshold]
        entries.extend(source | entry for entry in to_coco(instances, predict.class_names))
        return draw_detections(image, instances, predict.class_names, args.threshold)

    for path in tqdm(images, "images", disable=not images):
        try:
            image = read_image(path, "RGB")
        except (OSError, SyntaxError) as error:
            raise UserError(f"image {path} cannot be read ({error}): copy it again, or leave it out") from error
        write_png(output / f"{path.stem}.png", draw(image, file=str(path)))
    for path in videos:
        frames = (draw(frame, file=str(path), frame=number) for number, frame in enumerate(read_frames(path)))
        write_video(output / f"{path.stem}.mp4", frames, cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS))
    (output / "predictions.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    print(f"{len(entries)} boxes in {output / 'predictions.json'}, drawn beside it")


def find_inputs(paths: list[str]) -> tuple[list[Path], list[Path]]:
    """Image files, those of folders among them, and video files.

    Raises:
        UserError: one is absent, or neither image nor video, or two would be written to one file.
    """
    images, videos = [], []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"--input {path} does not exist: give images, folders or videos")
        found = sorted(p for p in path.iterdir() if cv2.haveImageReader(str(p))) if path.is_dir() else [path]
        if not found:
            raise UserError(f"--input {path} has no images: give a folder with some")
        for file in found:
            if file.suffix.lower() in VIDEOS and cv2.VideoCapture(str(file)).isOpened():
                videos.append(file)
            elif cv2.haveImageReader(str(file)):
                images.append(file)
            else:
                raise UserError(f"--input {file} is no image or video that OpenCV reads: convert it, or leave it out")
    for kind in (images, videos):
        for file in kind:
            same = [other for other in kind if other.stem == file.stem]
            if len(same) > 1:
                raise UserError(f"{same[0]} and {same[1]} would be drawn to one file: give them apart")
    return images, videos


def to_coco(instances: Instances, class_names: list[str]) -> Iterator[dict]:
    """COCO's results, boxes as (x, y, width, height) in pixels, with the classes' names."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    labels, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    for box, label, score in zip(boxes, labels, scores, strict=True):
        yield dict(category_id=label, category=class_names[label], bbox=box, score=score)


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """RGB frames of a video."""
    video = cv2.VideoCapture(str(path))
    with tqdm(total=int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None, desc=path.name) as progress:
        while True:
            there_is_one, frame = video.read()
            if not there_is_one:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            progress.update()


def write_video(path: Path, frames: Iterator[np.ndarray], rate: float) -> None:
    """RGB frames of one size."""
    writer = None
    try:
        for frame in frames:
            if writer is None:
                size = frame.shape[1::-1]
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate or FRAME_RATE, size)
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    finally:
        if writer is not None:
            writer.release()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the model")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders of images, videos")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for what is drawn and predictions.json")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score of a box (0.3)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    parser.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    args = parser.parse_intermixed_args(argv)
    # overrides may stand behind the inputs
    overrides = [text for text in args.input if re.match(r"[\w.]+=", text) and not Path(text).exists()]
    args.input = [text for text in args.input if text not in overrides]
    args.opts = overrides + args.opts
    return args


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
