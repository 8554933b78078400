#!/usr/bin/env python3
"""Generate a dataset of synthetic street scenes in the layout of KITTI's 2D object benchmark.

    python datasets/make_street_scenes.py                    # 800 + 200 images in $DETECTRON2_DATASETS/street_scenes
    python datasets/make_street_scenes.py --root my/scenes --train 80 --val 20 --seed 1

Each image depends only on the seed and its index, not on the number of jobs or images. The drawing code is in
streetscape/.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
from tqdm import tqdm

from streetscape import VERSION, draw_scene
from streetscape.labels import calibration

MANIFEST = "street_scenes.json"


def write_scene(index, root, seed, size):
    cv2.setNumThreads(1)
    picture, lines, camera = draw_scene(seed, index, size)
    training = Path(root) / "training"
    if not cv2.imwrite(str(training / "image_2" / f"{index:06d}.png"), picture):
        raise OSError(f"{training}: could not write image {index:06d}")
    (training / "label_2" / f"{index:06d}.txt").write_text("".join(line + "\n" for line in lines))
    (training / "calib" / f"{index:06d}.txt").write_text(calibration(camera))


def make(root, train, val, seed, size, jobs):
    """Write the dataset to the folder `root`, which appears only once it is complete."""
    root = Path(root)
    arguments = {"version": VERSION, "train": train, "val": val, "seed": seed, "size": list(size)}
    if root.exists():
        manifest = root / MANIFEST
        if manifest.is_file() and json.loads(manifest.read_text()) == arguments:
            print(f"{root}: already holds these {train} + {val} street scenes")
            return
        sys.exit(f"error: {root} already exists with other contents: remove it or choose another --root")
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        for folder in ("image_2", "label_2", "calib"):
            (temporary / "training" / folder).mkdir(parents=True)
        task = partial(write_scene, root=temporary, seed=seed, size=size)
        bar = partial(tqdm, total=train + val, unit="image", desc="street scenes")
        if jobs == 1:
            list(bar(map(task, range(train + val))))
        else:
            with ProcessPoolExecutor(jobs) as pool:
                list(bar(pool.map(task, range(train + val), chunksize=8)))
        splits = temporary / "ImageSets"
        splits.mkdir()
        (splits / "train.txt").write_text("".join(f"{i:06d}\n" for i in range(train)))
        (splits / "val.txt").write_text("".join(f"{i:06d}\n" for i in range(train, train + val)))
        (temporary / MANIFEST).write_text(json.dumps(arguments) + "\n")
        temporary.chmod(0o755)  # mkdtemp creates a private folder
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{root}: wrote {train} + {val} street scenes")


def parse_size(text):
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        width = height = 0
    if min(width, height) < 32:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT of at least 32x32, such as 320x96, got {text!r}")
    return width, height


def count(text):
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "street_scenes"
    parser.add_argument("--root", type=Path, default=default_root, help="output folder (default: %(default)s)")
    parser.add_argument("--train", type=count, default=800, help="number of training images (default: %(default)s)")
    parser.add_argument("--val", type=count, default=200, help="number of validation images (default: %(default)s)")
    parser.add_argument("--seed", type=count, default=0)
    parser.add_argument("--size", type=parse_size, default=(320, 96), help="WIDTHxHEIGHT (default: 320x96)")
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    if args.train + args.val == 0 or args.jobs == 0:
        parser.error("--train plus --val, and --jobs, must be at least 1")
    make(args.root, args.train, args.val, args.seed, args.size, args.jobs)


if __name__ == "__main__":
    main()
