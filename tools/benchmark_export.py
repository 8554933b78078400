#!/usr/bin/env python
"""Time a detector in PyTorch, and by ONNX Runtime and OpenVINO in float32 and int8, in turns in one process.

Weights are random, since they do not change the speed. The largest image is timed.

tools/benchmark_export.py --config-file STUDENT.py --images photos
tools/benchmark_export.py --config-file STUDENT.py --teacher TEACHER.py --images photos
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from tabulate import tabulate
from torch import nn

from check_export import read_folder
from clockdistill.engine import load_config
from clockdistill.engine.arguments import natural
from clockdistill.errors import UserError
from clockdistill.evaluation.cost import environment, latency
from clockdistill.export import ExportedDetector, Quantizer, save, write_model
from clockdistill.modeling import Detector

RUNTIMES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO"}


def build(config: str) -> Detector:
    torch.manual_seed(0)
    return instantiate(load_config(config).model).eval()


def export(detector: Detector, images: list[np.ndarray], folder: Path) -> dict[str, ExportedDetector]:
    """Export a detector for the size of the first image, which is the largest, in both precisions for both runtimes."""
    size = images[0].shape[1:]
    metadata = dict(class_names=[str(i) for i in range(detector.num_classes)], resize=None, size=list(size))
    for suffix in RUNTIMES:
        write_model(detector, folder / f"fp32{suffix}", size, metadata)
    quantizer = Quantizer(folder / "fp32.onnx", images, size)
    for suffix in RUNTIMES:
        save(quantizer.quantize(quantizer.parts), folder / f"int8{suffix}", metadata)
    return {
        f"{runtime} {precision}": ExportedDetector(folder / f"{precision}{suffix}")
        for suffix, runtime in RUNTIMES.items()
        for precision in ("fp32", "int8")
    }


def measure(models: dict[str, nn.Module], image: np.ndarray, rounds: int) -> dict[str, float]:
    """Return the models' median milliseconds on an image (3, h, w)."""
    times = latency(models, [dict(image=torch.from_numpy(image))], rounds)
    return {name: statistics.median(milliseconds) for name, milliseconds in times.items()}


def table(milliseconds: dict[str, float]) -> str:
    """Format times, and how many times as fast each row is as each column."""
    names = list(milliseconds)
    rows = [[a, milliseconds[a], *(milliseconds[b] / milliseconds[a] for b in names)] for a in names]
    headers = ["", "ms", *(f"against {name}" for name in names)]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=("", ".0f", *[".2f"] * len(names)))


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    images = sorted(read_folder(args.images), key=lambda image: -image.size)
    detector = build(args.config_file)
    models: dict[str, nn.Module] = {"PyTorch": detector}
    if args.teacher:
        models["teacher in PyTorch"] = build(args.teacher)
    with tempfile.TemporaryDirectory() as folder:
        models |= export(detector, images, Path(folder))
        times = measure(models, images[0], args.rounds)
    size = "x".join(map(str, images[0].shape[1:]))
    print(f"{tabulate(environment(torch.device('cpu')).items())}\n\n{size}\n\n{table(times)}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the detector")
    parser.add_argument("--teacher", metavar="FILE", help="config of another detector to time in PyTorch")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images to calibrate int8 on")
    parser.add_argument("--threads", type=natural, default=2, help="of each runtime (default: %(default)s)")
    parser.add_argument("--rounds", type=natural, default=10, help="the median is shown (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        main(parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")
