#!/usr/bin/env python
"""Train or evaluate a detector from a LazyConfig file.

Examples:
    train_net.py --config-file configs/dino/dino_r18_kitti_12ep.py --num-gpus 8 [--resume] [key=value ...]
    train_net.py --config-file configs/dino/dino_r18_kitti_12ep.py --eval-only train.init_checkpoint=model_final.pth
    train_net.py --config-file configs/dino/dino_r18_kitti_12ep.py --eval-only \\
        --compare student=configs/dino/dino_r18_kitti_12ep.py:student.pth \\
        --compare distilled=configs/dino/dino_r18_kitti_12ep.py:distilled.pth \\
        --compare teacher=configs/dino/dino_r50_kitti_12ep.py:teacher.pth
"""

import argparse
import sys

from detectron2.engine import default_argument_parser

import clockdistill.data  # noqa: F401  its import registers the datasets
from clockdistill.engine import compare, do_train, eval_only, load_config, run, setup
from clockdistill.errors import UserError


def main(args: argparse.Namespace) -> None:
    if args.compare and not args.eval_only:
        raise UserError("--compare only evaluates models: add --eval-only")
    cfg = load_config(args.config_file, args.opts)
    setup(cfg, args)
    if args.compare:
        compare(cfg, args.compare)
    elif args.eval_only:
        eval_only(cfg)
    else:
        do_train(args, cfg)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=CONFIG:CHECKPOINT",
        help="with --eval-only, once for each model: evaluate these on the test data of --config-file, in one table "
        "with differences from the first; the model and train.init_checkpoint of --config-file are then not used; "
        "NAME=FILE for a model exported by export.py",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
