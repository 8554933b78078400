#!/usr/bin/env python
"""Prints parameters and multiply-adds of the models of all configs, a row for every model, as a Markdown table.

Multiply-adds are those of inference on one image as its config shows it at evaluation, counted by fvcore; see
`clockdistill.evaluation.cost.count_flops`.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.data import transforms as T
from omegaconf import DictConfig
from tabulate import tabulate
from tqdm import tqdm

from clockdistill.engine import load_config
from clockdistill.errors import UserError
from clockdistill.evaluation.cost import blank_image, count_flops, count_parameters

CONFIGS = Path(__file__).parents[1] / "projects" / "CLoCKDistill" / "configs"
# height and width of a data set's images; COCO's vary, and these are shown as 800x1333, the most that configs allow
IMAGES = {"kitti_val": (375, 1242), "coco_2017_val": (480, 800), "street_val": (96, 320)}


def image_size(dataloader: DictConfig) -> tuple[int, int] | None:
    """Height and width at which a config shows an image of its test set to the model; None for data of one's own."""
    name = dataloader.test.dataset.names
    if name not in IMAGES:
        return None
    image = T.AugInput(np.zeros((*IMAGES[name], 3), np.uint8))
    T.AugmentationList(instantiate(dataloader.test.mapper.augmentations))(image)
    return image.image.shape[:2]


def rows(paths: Iterable[Path]) -> list[dict]:
    """One for every model that configs have at some image size, with the names of those configs."""
    found = []
    for path in paths:
        cfg = load_config(str(path))
        model, size = cfg.model, image_size(cfg.dataloader)
        row = next((row for row in found if (row["model"], row["size"]) == (model, size)), None)
        if row is None:
            row = dict(model=model, size=size, names=[])
            found.append(row)
        row["names"].append(path.stem)
    for row in tqdm(found, desc="models", unit="model", file=sys.stderr):
        model = instantiate(row["model"]).eval()
        flops = count_flops(model, blank_image(*row["size"])) if row["size"] else None
        row.update(parameters=count_parameters(model), flops=flops)
    return found


def table(found: list[dict]) -> str:
    cells = [
        (
            ", ".join(f"`{name}`" for name in row["names"]),
            "x".join(map(str, row["size"])) if row["size"] else "",
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['flops'] / 1e9:#.4g}" if row["flops"] else "",
        )
        for row in found
    ]
    headers = ("configs", "image", "parameters (M)", "GFLOPs")
    return tabulate(cells, headers, tablefmt="pipe", disable_numparse=True, colalign=("left", "left", "right", "right"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="config files; all that are shipped, where none is named")
    paths = parser.parse_args().configs
    paths = paths or sorted(path for path in CONFIGS.rglob("*.py") if "common" not in path.parts)
    try:
        print(table(rows(paths)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
