#!/usr/bin/env python
"""Export every family and variant at full size, with random weights, and compare the files with PyTorch on images.

tools/check_export.py --images photos                              all models and formats, one row each
tools/check_export.py --images photos --models dino --formats .onnx
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data.detection_utils import read_image
from tabulate import tabulate
from tqdm import tqdm

import families
from clockdistill.engine import load_config
from clockdistill.engine.arguments import natural
from clockdistill.errors import UserError
from clockdistill.export import SUFFIXES, compare_models, write_model
from clockdistill.modeling import Detector

SIZE = (375, 1242)
STUDENTS = {f"{family}_r18": families.coco_config(family, "r18") for family in families.MODELS}
MODELS = [*families.VARIANTS, *STUDENTS]


def read_folder(folder: Path) -> list[np.ndarray]:
    """Read the images of a folder, as (3, h, w) uint8 RGB."""
    images = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            images.append(read_image(str(path), "RGB").transpose(2, 0, 1).copy())
        except (OSError, SyntaxError, ValueError) as error:  # all three come from Pillow
            raise UserError(f"{path} cannot be read as an image: remove it") from error
    if not images:
        raise UserError(f"{folder} is not a folder with images: choose another one")
    return images


def check(detector: Detector, suffix: str, images: list[np.ndarray], size: tuple[int, int] = SIZE) -> tuple[bool, str]:
    """Export in one format; return whether the file equals PyTorch, and the largest differences or what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        write_model(detector, path, size, {})
        try:
            return True, str(compare_models(detector, path, images, size))
        except UserError as error:
            return False, str(error)


def build(name: str) -> Detector:
    """Build one of `MODELS` with random weights."""
    cfg = load_config(str(STUDENTS[name])) if name in STUDENTS else families.training_config(name)
    torch.manual_seed(0)
    return instantiate(cfg.model).eval()


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    images, results = read_folder(args.images), []
    for name in tqdm(args.models, desc="models", unit="model"):
        detector = build(name)
        results += [(name, suffix, *check(detector, suffix, images)) for suffix in args.formats]
    rows = [(name, suffix, text) for name, suffix, _, text in results]
    print(tabulate(rows, ("model", "format", f"largest differences on {len(images)} images"), tablefmt="pipe"))
    if failed := sum(not equal for _, _, equal, _ in results):
        raise UserError(f"{failed} files do not equal PyTorch: see the table")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images to compare on")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL", help=f"any of {', '.join(MODELS)}"
    )
    parser.add_argument("--formats", nargs="+", choices=SUFFIXES, default=SUFFIXES, help="(default: all)")
    parser.add_argument("--threads", type=natural, default=torch.get_num_threads(), help="(default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        main(parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")
