#!/usr/bin/env python
"""Train or evaluate a detector by a LazyConfig file.

Examples:
    train_net.py --config-file configs/dino/dino_r18_kitti_12ep.py --num-gpus 8 [--resume] [key=value ...]
    train_net.py --config-file configs/dino/dino_r18_kitti_12ep.py --eval-only train.init_checkpoint=model_final.pth
"""

import argparse
import sys

from detectron2.engine import default_argument_parser

import clockdistill.data  # noqa: F401  its import registers the data sets
from clockdistill.engine import do_train, eval_only, load_config, run, setup


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    setup(cfg, args)
    if args.eval_only:
        eval_only(cfg)
    else:
        do_train(args, cfg)


if __name__ == "__main__":
    sys.exit(run(main, default_argument_parser(epilog=__doc__).parse_args()))
