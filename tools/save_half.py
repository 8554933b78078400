#!/usr/bin/env python
"""Save the weights and the metadata of a checkpoint in half precision: half the size, loaded like the original.

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
    checkpoint = torch.load(args.source, map_location="cpu", weights_only=True)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in checkpoint["model"].items()}
    metadata = checkpoint.get("metadata", {})
    args.target.parent.mkdir(parents=True, exist_ok=True)
    # the older format pads less between hundreds of small tensors
    torch.save({"model": weights, "metadata": metadata}, args.target, _use_new_zipfile_serialization=False)
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
