#!/usr/bin/env python
"""Print a Markdown table of the parameters and multiply-adds of all configs' models, and of the families' variants.

Multiply-adds are counted by fvcore in inference, on one image at the config's test size; see
`clockdistill.evaluation.cost.count_flops`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.data import transforms as T
from omegaconf import DictConfig
from tabulate import tabulate
from tqdm import tqdm

import families
from clockdistill.engine import load_config
from clockdistill.errors import UserError
from clockdistill.evaluation.cost import blank_image, count_flops, count_parameters

# height and width of a dataset's images; those of COCO vary, and this size becomes the largest, 800x1333
IMAGES = {"kitti_val": (375, 1242), "coco_2017_val": (480, 800), "street_val": (96, 320)}


def image_size(dataloader: DictConfig) -> tuple[int, int] | None:
    """Get height and width of the model's input for an image of the test set; None for other datasets."""
    name = dataloader.test.dataset.names
    if name not in IMAGES:
        return None
    image = T.AugInput(np.zeros((*IMAGES[name], 3), np.uint8))
    T.AugmentationList(instantiate(dataloader.test.mapper.augmentations))(image)
    return image.image.shape[:2]


def rows(configs: dict[str, DictConfig]) -> list[dict]:
    """Count parameters and multiply-adds, once for all configs with the same model and image size."""
    rows = []
    for name, cfg in configs.items():
        model, size = cfg.model, image_size(cfg.dataloader)
        row = next((row for row in rows if (row["model"], row["size"]) == (model, size)), None)
        if row is None:
            row = dict(model=model, size=size, names=[])
            rows.append(row)
        row["names"].append(name)
    for row in tqdm(rows, desc="models", unit="model", file=sys.stderr):
        model = instantiate(row["model"]).eval()
        flops = count_flops(model, blank_image(*row["size"])) if row["size"] else None
        row.update(parameters=count_parameters(model), flops=flops)
    return rows


def table(rows: list[dict]) -> str:
    cells = [
        (
            ", ".join(f"`{name}`" for name in row["names"]),
            "x".join(map(str, row["size"])) if row["size"] else "",
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['flops'] / 1e9:#.4g}" if row["flops"] else "",
        )
        for row in rows
    ]
    headers = ("configs", "image", "parameters (M)", "GFLOPs")
    return tabulate(cells, headers, tablefmt="pipe", disable_numparse=True, colalign=("left", "left", "right", "right"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="config files (default: all)")
    paths = parser.parse_args().configs
    try:
        configs = {path.stem: load_config(str(path)) for path in paths or families.TRAINING_CONFIGS}
        if not paths:
            configs |= {name: families.training_config(name) for name, changes in families.VARIANTS.items() if changes}
        print(table(rows(configs)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
