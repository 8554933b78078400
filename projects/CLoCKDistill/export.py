#!/usr/bin/env python
"""Export a detector as a file that runs without PyTorch or without Detectron2, and check it.

The format follows from the output's name: NAME.onnx (ONNX), NAME.xml (OpenVINO IR, with NAME.bin) or NAME.pt2
(torch.export, which needs torch). The model takes `images` (B, 3, H, W), uint8 RGB, and `sizes` (B, 2), int64, their
heights and widths without padding at the right and bottom. It returns `boxes` (B, N, 4) in pixels, `scores` (B, N) and
`labels` (B, N). Normalization, padding mask and the selection of the best boxes are inside; class names and test-time
resizing are in the metadata.

The file is then run on images of the config's test set or of --images. Its boxes must equal PyTorch's to 0.01 pixels,
and its scores to 0.0001; with --precision fp16, to 1 pixel and 0.01. Otherwise no file is left.

--precision fp16 stores the weights in half the space and computes in float32. --precision int8 also computes most
convolutions and matrix products in int8, which is faster. Ranges of activations come from images of the config's
training set or of --images. The AP on the config's test set may fall by at most 0.5; parts of the model that would cost
more stay in float32. If the test set is not on disk, the agreement with the float32 model on --images is printed.

Examples:
    export.py --config-file configs/dino/dino_r18_kitti_12ep.py --output student.onnx --size 376x1242 \\
        --opts train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
    export.py --config-file configs/dino/dino_r18_small_street.py --output student.xml --images photos/ \\
        --opts train.init_checkpoint=demo/dino_r18_small_street.pth
    export.py --config-file configs/dino/dino_r18_kitti_12ep.py --output student.onnx --precision int8 \\
        --opts train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
"""

import argparse
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig

from clockdistill.data.catalog import measure_header
from clockdistill.engine import dataset_names, load_config, load_model_and_metadata, load_records, run
from clockdistill.engine.arguments import natural
from clockdistill.engine.checkpoint import resize_rule
from clockdistill.errors import MissingDataset, UserError
from clockdistill.export import (
    MAX_LOSS,
    SUFFIXES,
    Evaluation,
    Quantizer,
    choose_parts,
    compare_models,
    confident_detections,
    float_layers,
    metadata_of,
    save,
    write_model,
)
from predict import collect_inputs, get_augmentations, get_class_names

NUM_IMAGES = 8  # to compare on
NUM_CALIBRATION_IMAGES = 64
NUM_EVALUATION_IMAGES = 500


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output} has no known format: end its name in {', '.join(SUFFIXES)}")
    if not os.access(output.absolute().parent, os.W_OK):
        raise UserError(f"the folder of --output {output} does not exist or is read-only: create it, or choose another")
    if args.dynamic and output.suffix == ".pt2":
        raise UserError("a .pt2 file has a fixed size: leave out --dynamic, or export to .onnx or .xml")
    if args.precision != "fp32" and output.suffix == ".pt2":
        raise UserError(f"a .pt2 file has float32 weights: leave out --precision {args.precision}, or export to .onnx")
    cfg = load_config(args.config_file, args.opts)
    detector, metadata = load_model_and_metadata(cfg)
    class_names, augmentations = get_class_names(cfg, metadata), get_augmentations(cfg, metadata)
    paths = image_paths(cfg, args.images)
    if args.precision == "int8":
        calibration = spread(image_paths(cfg, args.images, "train"), NUM_CALIBRATION_IMAGES)
        records, dataset = labeled(cfg, args.images)
    size = args.size or smallest_size(paths, augmentations)
    fixed_size = None if args.dynamic else size
    contents = metadata_of(
        detector,
        dict(class_names=class_names, resize=resize_rule(augmentations.augs)),
        config=Path(args.config_file).stem,
        checkpoint=Path(PathManager.get_local_path(cfg.train.init_checkpoint)),
        size=fixed_size,
        precision=args.precision,
    )
    print("writing {} for images of {}x{} pixels{}".format(output, *size, " as an example" if args.dynamic else ""))
    try:
        # on the same disk, so that the complete file appears at once
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output.absolute().parent) as folder:
            file = Path(folder) / output.name
            compared = list(read_images(paths[:NUM_IMAGES], augmentations))
            if args.precision == "int8":
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    float_file = Path(scratch) / "float.onnx"
                    write_model(detector, float_file, size, contents, args.dynamic, args.grid_sample)
                    compare_models(detector, float_file, compared, fixed_size)
                    quantizer = Quantizer(float_file, read_images(calibration, augmentations), fixed_size)
                    report = write_int8(quantizer, float_file, file, contents, records, dataset, augmentations)
            else:
                is_half = args.precision == "fp16"
                write_model(detector, file, size, contents, args.dynamic, args.grid_sample, is_half)
                differences = compare_models(detector, file, compared, fixed_size, args.precision)
                report = f"compared with PyTorch on {differences.images} images: {differences}"
            # the weights of an OpenVINO model come first: a model without them does not open
            for part in sorted(Path(folder).glob("*.*"), key=lambda path: path == file):
                part.replace(output.with_name(part.name))
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror or error}; free some space, or choose another disk"
        ) from error
    print(report)
    print(f"exported model: {output}")


def write_int8(
    quantizer: Quantizer,
    float_file: Path,
    file: Path,
    contents: dict,
    records: list[dict],
    dataset: str | None,
    augmentations: T.AugmentationList,
) -> str:
    """Write a model with as many parts in int8 as its accuracy allows, and describe it.

    Args:
        float_file: the model in float32.
        file: to write; its runtime measures the accuracy.
        contents: metadata, see `metadata_of`.
        records: images to measure the accuracy on, with annotations if they are of a dataset.
        dataset: its name; None if the detections of `float_file` are the truth.
    """

    def read(records: list[dict]) -> Iterator[np.ndarray]:
        return read_images([Path(record["file_name"]) for record in records], augmentations)

    records = spread(records, NUM_EVALUATION_IMAGES)
    metric = f"COCO's AP on {len(records)} images of {dataset}"
    if dataset is None:
        records = confident_detections(float_file, records, read)
        metric = f"COCO's AP on {len(records)} images, with the detections of the float32 model as truth"
    evaluate = Evaluation(records, read)
    before = evaluate(float_file, "float32")
    if math.isnan(before):
        where, fix = "the images", "pass others with --images"
        if dataset is not None:
            where, fix = f"dataset {dataset}", "set dataloader.test.dataset.names to one with objects"
        raise UserError(f"{where} cannot show the accuracy of int8, because there are no objects: {fix}")

    def measure(parts: list[str]) -> float:
        save(quantizer.quantize(parts), file, contents)
        return evaluate(file, "int8")

    # the detections of another model are not exact enough to give up parts for them
    choice = choose_parts(quantizer.parts, measure, before, MAX_LOSS if dataset else math.inf)
    model = quantizer.quantize([part for part in quantizer.parts if part not in choice.float_parts])
    accuracy = dict(metric=metric, before=before, after=choice.ap)
    save(model, file, contents | dict(float_layers=float_layers(model), accuracy=accuracy))
    return "\n".join(
        [
            f"{metric}: {before:.2f} in float32, {choice.ap:.2f} in int8",
            choice.table,
            f"parts in float32: {', '.join(['heads', *choice.float_parts])}",
        ]
    )


def spread(items: list, count: int) -> list:
    """Return up to `count` items, evenly spaced."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else items


def labeled(cfg: DictConfig, folder: str | None) -> tuple[list[dict], str | None]:
    """Return the records of the config's test set and its name, or if it is not on disk those of a folder and None."""
    try:
        return load_records(cfg, "test"), " + ".join(dataset_names(cfg, "test"))
    except MissingDataset as error:
        print(f"{error}; until then, int8 is compared with the float32 model on --images")
    records = []
    for index, path in enumerate(image_paths(cfg, folder)):
        width, height = size_of(path)
        records.append(dict(file_name=str(path), image_id=index, width=width, height=height))
    return records, None


def image_paths(cfg: DictConfig, folder: str | None, split: str = "test") -> list[Path]:
    """Return the images of a folder, or of the config's training or test set.

    Raises:
        UserError: there are none.
    """
    if folder is not None:
        return collect_inputs([Path(folder)])[0]
    try:
        return [Path(record["file_name"]) for record in load_records(cfg, split)]
    except MissingDataset as error:
        raise MissingDataset(f"{error}, or pass a folder of images with --images") from error


def smallest_size(paths: list[Path], augmentations: T.AugmentationList) -> tuple[int, int]:
    """Return the smallest height and width that hold every image after test-time resizing; reads only their headers."""
    rule = resize_rule(augmentations.augs)
    heights, widths = [], []
    for path in paths:
        width, height = size_of(path)
        if rule is not None:
            height, width = T.ResizeShortestEdge.get_output_shape(
                height, width, rule["short_edge_length"], rule["max_size"]
            )
        heights.append(height)
        widths.append(width)
    return max(heights), max(widths)


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of an image, from its header."""
    size = measure_header(path)
    if isinstance(size, str):
        raise UserError(size)
    return size


def unreadable(path: Path) -> UserError:
    return UserError(f"{path} cannot be read as an image: copy it again")


def read_images(paths: list[Path], augmentations: T.AugmentationList) -> Iterator[np.ndarray]:
    """Read images as the test loader does, as (3, h, w) uint8 RGB."""
    for path in paths:
        try:
            augmented = T.AugInput(read_image(path, "RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # all three come from Pillow
            raise unreadable(path) from error
        augmentations(augmented)
        yield np.ascontiguousarray(augmented.image.transpose(2, 0, 1))


def image_size(text: str) -> tuple[int, int]:
    """Height and width, as in 375x1242."""
    if not re.fullmatch(r"\d+x\d+", text):
        raise argparse.ArgumentTypeError(f"{text} is not a height and a width, as in 375x1242")
    height, width = map(natural, text.split("x"))
    return height, width


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig file of the model")
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write: .onnx, .xml or .pt2")
    parser.add_argument(
        "--size",
        type=image_size,
        metavar="HxW",
        help="height and width of the input (default: the smallest that hold all images of the test set or --images)",
    )
    parser.add_argument("--dynamic", action="store_true", help="let height and width vary (.onnx and .xml)")
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "int8"],
        default="fp32",
        help="fp16 stores weights in float16, int8 also computes in int8; both need .onnx or .xml (default: fp32)",
    )
    parser.add_argument(
        "--grid-sample",
        choices=["native", "gather"],
        default="native",
        help="how deformable attention samples: by GridSample, or by Gather and arithmetic (default: native)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of images to compare and to calibrate int8 on (default: the config's datasets)",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="overrides of the config, such as the checkpoint"
    )
    parser.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
