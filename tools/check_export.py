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


def read_folder(path: str) -> list[np.ndarray]:
    """Read the images of a folder, as (3, h, w) uint8 RGB."""
    files = sorted(Path(path).iterdir()) if Path(path).is_dir() else []
    try:
        images = [read_image(str(file), "RGB").transpose(2, 0, 1).copy() for file in files]
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} has a file that is no image ({error}): remove it") from error
    if not images:
        raise argparse.ArgumentTypeError(f"{path} is not a folder with images: give one")
    return images


def check(detector: Detector, suffix: str, images: list[np.ndarray], size: tuple[int, int] = SIZE) -> str:
    """Export in one format; return the largest differences from PyTorch, or what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        write_model(detector, path, size, {})
        try:
            return str(compare_models(detector, path, images, size))
        except UserError as error:
            return str(error)


def build(name: str) -> Detector:
    """Build one of `MODELS` with random weights."""
    cfg = load_config(str(STUDENTS[name])) if name in STUDENTS else families.training_config(name)
    torch.manual_seed(0)
    return instantiate(cfg.model).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=read_folder, metavar="DIR", help="images to compare on")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL", help=f"any of {', '.join(MODELS)}"
    )
    parser.add_argument("--formats", nargs="+", choices=SUFFIXES, default=SUFFIXES, help="(default: all)")
    parser.add_argument("--threads", type=natural, default=torch.get_num_threads(), help="(default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in tqdm(args.models, desc="models", unit="model"):
        detector = build(name)
        rows += [(name, suffix, check(detector, suffix, args.images)) for suffix in args.formats]
    print(tabulate(rows, ("model", "format", f"largest differences on {len(args.images)} images"), tablefmt="pipe"))
    failed = [row for row in rows if "differ by up to" not in row[2] or "does not compute" in row[2]]
    sys.exit(f"error: {len(failed)} files do not equal PyTorch" if failed else 0)


if __name__ == "__main__":
    main()
