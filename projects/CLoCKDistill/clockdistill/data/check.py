"""Check whole datasets, list every fault, and count what they contain.

    python -m clockdistill.data.check kitti_train kitti_val
    python -m clockdistill.data.check coco:/data/mine/train.json

Training makes the same checks, except that it does not decode every image. Some faults it repairs; the lines of these
start with "repaired:". The exit status is 1 if there are others.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from ..errors import UserError
from . import register_by_name
from .catalog import Reader, Reading
from .coco import read_coco
from .kitti import DIFFICULTIES

# COCO's size ranges by their lower bounds, in square pixels
SIZES = {"small": 0, "medium": 32**2, "large": 96**2}
BAR_WIDTH = 0.27  # with classes at distance 1


def check(name: str) -> tuple[Reading, list[str]]:
    """Return a dataset, with all its images decoded, and its class names.

    Raises:
        UserError: the dataset does not exist or cannot be read at all.
    """
    register_by_name(name)
    if name not in DatasetCatalog.list():
        raise UserError(f"unknown dataset {name}; write, for example, kitti_train or coco:ANNOTATIONS.json")
    metadata = MetadataCatalog.get(name)
    read: Reader | None = metadata.get("read", None)
    if read is not None:
        data = read(True)
        return data, metadata.thing_classes
    if not metadata.get("json_file", None):
        raise UserError(f"{name} has neither KITTI's nor COCO's format; only these can be checked")
    data, metadata = read_coco(Path(metadata.json_file), Path(metadata.image_root), decode=True)
    return data, metadata["thing_classes"]


def statistics(records: list[dict], class_names: list[str]) -> dict[str, dict[str, int]]:
    """Count boxes by COCO's sizes and KITTI's difficulties, for each class, for `all`, and for `ignored` regions.

    As in the benchmark, easy objects are also moderate and hard. Data without occlusion levels have no difficulties.
    """
    counts = {name: Counter() for name in [*class_names, "all", "ignored"]}
    for record in records:
        # a region that is ignored for several classes has one annotation for each
        counts["ignored"]["boxes"] += len({tuple(a["bbox"]) for a in record["annotations"] if a.get("iscrowd", 0)})
    for annotation in (a for record in records for a in record["annotations"] if not a.get("iscrowd", 0)):
        left, top, right, bottom = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        area = (right - left) * (bottom - top)
        columns = ["boxes", next(size for size, minimum in reversed(SIZES.items()) if area >= minimum)]
        if "occluded" in annotation:
            visibility = bottom - top, annotation["occluded"], annotation["truncated"]
            columns += [title for title, difficulty in DIFFICULTIES.items() if difficulty.admits(*visibility)]
        for name in (class_names[annotation["category_id"]], "all"):
            counts[name].update(columns)
    columns = ["boxes", *SIZES]
    if any("occluded" in a for record in records for a in record["annotations"]):
        columns += DIFFICULTIES
    table = {name: {column: count[column] for column in columns} for name, count in counts.items()}
    table["ignored"] = {"boxes": counts["ignored"]["boxes"]}
    return table


def plot(tables: dict[str, dict[str, dict[str, int]]], path: str) -> None:
    """Plot the boxes of each class by size and, if known, by difficulty, with one row per dataset."""
    figure = Figure((12, 3 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 2, squeeze=False)
    for row, (name, table) in zip(axes, tables.items(), strict=True):
        classes = [key for key in table if key not in ("all", "ignored")]
        for ax, columns in zip(row, (SIZES, DIFFICULTIES), strict=True):
            if not set(columns) <= set(table["all"]):
                ax.set_visible(False)
                continue
            for index, column in enumerate(columns):
                x = np.arange(len(classes)) + (index - 1) * BAR_WIDTH
                ax.bar(x, [table[c][column] for c in classes], BAR_WIDTH, label=column)
            ax.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
            ax.set_ylabel("boxes")
            ax.yaxis.get_major_locator().set_params(integer=True)
            ax.set_title(name, loc="left", fontsize="medium")
            ax.margins(y=0.2)
            ax.legend(loc="upper right", ncols=len(columns), frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="dataset, as in dataloader.train.dataset.names")
    parser.add_argument(
        "--output", default="output/data_check.png", metavar="PNG", help="bar charts to write (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    tables, status = {}, 0
    for name in args.names:
        try:
            data, class_names = check(name)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        for fault in data.faults:
            print(f"repaired: {fault.message}" if fault.repair else fault.message)
        tables[name] = table = statistics(data.records, class_names)
        rows = [{"class": key, **counts} for key, counts in table.items()]
        faults = sum(fault.repair is None for fault in data.faults)
        print(f"\n{name}: {len(data.records)} image(s), {faults} fault(s)\n")
        print(tabulate(rows, "keys", tablefmt="pipe"))
        if data.repairs:
            print()
            print(tabulate(data.repairs.items(), ["repaired", "count"], tablefmt="pipe"))
        status |= faults > 0
    if tables:
        plot(tables, args.output)
        print(f"\nbar charts: {args.output}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
