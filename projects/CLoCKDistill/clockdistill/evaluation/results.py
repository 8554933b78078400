"""Evaluation results as JSON and as a table."""

import json
import math
import re
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files import replaced


def as_file_name(text: str) -> str:
    """Replace what could make a path of a name, as in `kitti:/data/mine:val`."""
    return re.sub(r"[^\w.-]+", "_", text)


def write_json(data: Any, path: str | Path) -> None:
    """Write JSON atomically. Missing folders are created, and NaN becomes null."""
    path = Path(path)
    text = json.dumps(nan_to_none(data), indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        file.write(text.encode())


def nan_to_none(data: Any) -> Any:
    """Replace NaN, which JSON does not have, in nested dictionaries. COCO's AP is NaN for classes without objects."""
    if isinstance(data, dict):
        return {key: nan_to_none(value) for key, value in data.items()}
    return None if isinstance(data, float) and math.isnan(data) else data


def comparison_table(results: dict[str, dict]) -> str:
    """Format a table with one column per model and, in parentheses, the differences from the first model.

    Args:
        results: for each model the evaluators' results by task, and its cost, see `cost.benchmark`, as "benchmark".
            Of KITTI's metrics, the table has AP with 40 recall points at moderate difficulty, the benchmark's ranking
            criterion.
    """
    first = next(iter(results.values()))
    rows = []
    for task, metrics in first.items():
        if task in ("benchmark", "environment"):
            continue
        for key in metrics:
            if "/" not in key or key.endswith("/moderate/AP40"):
                label = key if task == "bbox" else f"{task} {key}"
                rows.append([label, *_cells([r[task].get(key) for r in results.values()], ".1f")])
    if "benchmark" in first:
        costs = [r["benchmark"] for r in results.values()]
        height, width = costs[0]["image_size"]
        for label, key, unit, form in (
            ("parameters (M)", "parameters", 1e6, ".2f"),
            (f"GFLOPs at {height}x{width}", "gflops", 1, ".2f"),
            ("ms per image, median", "ms_per_image", 1, ".1f"),
            ("ms per image, 95th percentile", "ms_per_image_p95", 1, ".1f"),
            ("images per second", "images_per_second", 1, ".1f"),
            ("peak memory (MiB)", "peak_memory_mib", 1, ".0f"),
            ("file (MiB)", "file_mib", 1, ".1f"),
        ):
            values = [cost.get(key) for cost in costs]
            if any(value is not None for value in values):
                rows.append([label, *_cells([None if value is None else value / unit for value in values], form)])
    alignment = ("left", *("right" for _ in results))
    return tabulate(rows, ["", *results], tablefmt="pipe", disable_numparse=True, colalign=alignment)


def _cells(values: list[float | None], form: str) -> list[str]:
    """Values, "-" for None, and the differences from the first."""
    first, *others = values
    cells = ["-" if first is None else f"{first:{form}}"]
    for value in others:
        difference = "" if None in (first, value) else f" ({value - first:+{form}})"
        cells.append("-" if value is None else f"{value:{form}}{difference}")
    return cells
