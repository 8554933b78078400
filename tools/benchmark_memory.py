#!/usr/bin/env python
"""Measure the peak memory of a training step at several batch sizes, with and without activation checkpointing.

Each step runs in its own process, on images of KITTI's size with random weights, in float32. On the CPU, memory is the
peak of the whole process, Python and libraries included; on a GPU, the peak of PyTorch's tensors. The processes return
what they free to the system at once: by default, glibc keeps so much that it hides most of the differences.

tools/benchmark_memory.py                        DINO R-50, DINO R-18, and DINO R-18 distilled from R-50
tools/benchmark_memory.py --models dab_detr_r18 --batch-sizes 8
"""

import argparse
import os
import subprocess
import sys

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from tabulate import tabulate
from tqdm import tqdm

from benchmark_models import IMAGE, MODELS, config_of, peak_mebibytes, random_image, training_step
from clockdistill.engine.arguments import natural
from clockdistill.evaluation.cost import environment

SMALL = (64, 96)
# glibc gives larger blocks a mapping of their own; without this, the threshold grows with the blocks that are freed
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def measure(cfg: DictConfig, batch_size: int, device: torch.device) -> float:
    """Return the peak memory of a training step in MiB."""
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device).train()
    step = training_step(cfg, model)
    step([random_image(model.num_classes, SMALL)])  # creates the state of the optimizer
    step([random_image(model.num_classes)] * batch_size)
    return peak_mebibytes(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=["dino", "dino_r18", "dino_r50_to_r18"],
        metavar="MODEL",
        help=f"any of {', '.join(MODELS)}",
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=natural, default=[1, 2, 4], metavar="N", help="(default: 1 2 4)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=natural, default=torch.get_num_threads(), help="of PyTorch on the CPU (default: %(default)s)"
    )
    parser.add_argument(
        "--alone", choices=("keep", "checkpoint"), help="measure the first model and batch size in this process"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.alone:
        cfg = config_of(args.models[0])
        cfg.model.encoder.activation_checkpointing = args.alone == "checkpoint"
        print(measure(cfg, args.batch_sizes[0], device))
        return
    rows = []
    for name, size in tqdm([(name, size) for name in args.models for size in args.batch_sizes], disable=None):
        rows.append([name, size])
        for way in ("keep", "checkpoint"):
            options = ["--models", name, "--batch-sizes", str(size), "--alone", way]
            command = [sys.executable, __file__, "--device", args.device, "--threads", str(args.threads), *options]
            done = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
            rows[-1].append(float(done.stdout.splitlines()[-1]))
        rows[-1].append(f"{rows[-1][3] / rows[-1][2] - 1:+.0%}")
    headers = ["", "batch", "memory (MiB)", "with activation checkpointing (MiB)", "difference"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".0f")
    print(f"{tabulate(environment(device).items())}\n\n{IMAGE[0]}x{IMAGE[1]}\n\n{table}")


if __name__ == "__main__":
    main()
