#!/usr/bin/env python
"""Draw what a detector finds on the test set of its config, below the ground truth.

Example:
    visualize.py --config-file configs/dino/dino_r18_kitti_12ep.py --output pictures --images 10 \\
        train.init_checkpoint=output/dino_r18_kitti_12ep/model_final.pth
"""

import argparse
import os
import sys

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

import clockdistill.data  # noqa: F401  its import registers the data sets
from clockdistill.engine import load_config, load_model, run
from clockdistill.evaluation.pictures import save_comparisons


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    model = load_model(cfg)

    inputs, records = instantiate(cfg.dataloader.test).dataset, instantiate(cfg.dataloader.test.dataset)
    chosen = range(min(args.images, len(records)))
    class_names = MetadataCatalog.get(cfg.dataloader.test.dataset.names).thing_classes
    os.makedirs(args.output, exist_ok=True)
    paths = save_comparisons(
        {"Predictions": model},
        [inputs[i] for i in chosen],
        [records[i] for i in chosen],
        class_names,
        args.output,
        args.threshold,
    )
    print("\n".join(paths))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--images", type=int, default=10, help="how many of the test set, from its start")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score that is drawn")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    parser.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
