#!/usr/bin/env python
"""Time a detector in PyTorch and exported files by their runtimes, on one random image, alternating in one process.

The detector's weights are random. The files may come from other configs: students can be timed against their teacher.

tools/benchmark_export.py --config-file dino_r18_kitti_12ep.py --models student.onnx student.xml int8.onnx
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from detectron2.config import instantiate
from tabulate import tabulate
from torch import nn

from clockdistill.engine import load_config
from clockdistill.engine.arguments import natural
from clockdistill.errors import UserError
from clockdistill.evaluation.cost import environment, latency
from clockdistill.export import ExportedDetector

IMAGE = (375, 1242)  # for files whose size is free


def measure(detector: nn.Module, files: list[Path], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of the detector and of every file, on an image of the first file's size."""
    models = {"PyTorch": detector} | {str(file): ExportedDetector(file) for file in files}
    height, width = models[str(files[0])].size or IMAGE
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    times = latency(models, [dict(image=image, height=height, width=width)], rounds)
    return {name: statistics.median(milliseconds) for name, milliseconds in times.items()}


def table(milliseconds: dict[str, float]) -> str:
    """Format times and how many times as fast every model is as each other one."""
    names = list(milliseconds)
    rows = [[a, milliseconds[a], *(milliseconds[b] / milliseconds[a] for b in names)] for a in names]
    headers = ["", "ms", *(f"against {name}" for name in names)]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=("", ".0f", *[".2f"] * len(names)))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the detector in PyTorch")
    parser.add_argument("--models", nargs="+", required=True, type=Path, metavar="FILE", help="files of export.py")
    parser.add_argument("--threads", type=natural, default=2, help="of each runtime (default: %(default)s)")
    parser.add_argument("--rounds", type=natural, default=10, help="the median is shown (default: %(default)s)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="key=value", help="overrides of the config")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    detector = instantiate(load_config(args.config_file, args.opts).model).eval()
    times = measure(detector, args.models, args.rounds)
    print(f"{tabulate(environment(torch.device('cpu')).items())}\n\n{table(times)}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")
