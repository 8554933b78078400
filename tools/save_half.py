#!/usr/bin/env python
"""Store a checkpoint's weights in half precision: half the size, to be loaded like the original.

tools/save_half.py output/dino_r18_small_street/model_final.pth projects/CLoCKDistill/demo/dino_r18_small_street.pth
"""

import argparse
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    weights = torch.load(args.source, map_location="cpu", weights_only=True)["model"]
    halved = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    args.target.parent.mkdir(parents=True, exist_ok=True)
    # the older format pads less between hundreds of small tensors
    torch.save({"model": halved}, args.target, _use_new_zipfile_serialization=False)
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
