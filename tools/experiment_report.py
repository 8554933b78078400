"""Tables, confidence intervals and bar charts of a matrix of experiments, from the files of its runs."""

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from clockdistill.config_file import execute_config
from clockdistill.errors import UserError
from clockdistill.evaluation.bootstrap import match_detections, resampled_ap
from clockdistill.evaluation.results import write_json
from experiment_matrix import FULL, PLAIN, TEACHER, Run, methods_of, read_json, with_teachers

PAGE = "results.md"
RESULTS = "results"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RESAMPLES = 1000
CONFIDENCE = 95  # percent


def write_report(matrix: dict, runs: Sequence[Run], folder: Path) -> str:
    """Write the results of a matrix to `results` in a folder, and its tables to `results.md` there; return the tables.

    There are a JSON file, a chart, and an `.npz` file with each student's AP on resampled images. Results of runs whose
    folders are gone are taken from the files of an earlier report.

    Raises:
        UserError: there are no results.
    """
    path = folder / RESULTS / f"{matrix['name']}.json"
    old = read_json(path) if path.is_file() else dict(runs=[], differences=[])
    written = {key_of(r["cell"], r["method"], r["seed"]): r for r in old["runs"]}
    old_samples, samples = read_samples(path.with_suffix(".npz")), {}
    results = []
    for run in with_teachers(runs):
        key = key_of(run.cell, run.method, run.seed)
        earlier = written.get(key)
        result = describe(run) if run.is_done else earlier
        if not result or result["command"] != run.command:
            continue
        results.append(result)
        if result == earlier and key in old_samples:
            samples[key] = old_samples[key]
        elif run.is_done and run.method != TEACHER:
            samples[key] = resample(run)
    if not results:
        raise UserError(f"no run of the matrix {matrix['name']} is done: start them with experiments.py run")
    differences = [d for cell in matrix["cells"] for d in cell_differences(results, cell, samples, old["differences"])]
    text, chart = tables(matrix, results, differences), path.with_suffix(".png")
    write_json(dict(matrix=matrix["name"], runs=results, differences=differences), path)
    if samples:
        np.savez_compressed(path.with_suffix(".npz"), **samples)
    plot_bars(matrix, results, chart)
    insert(folder / PAGE, matrix["name"], f"{text}\n\n![{matrix['title']}]({RESULTS}/{chart.name})")
    return text


def key_of(cell: str, method: str, seed: int) -> str:
    """Return the name of a run's array in the `.npz` file."""
    return f"{cell}/{method}/{seed}"


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """Return the AP (RESAMPLES,) on resampled images by `key_of` the run; {} without the file."""
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return dict(file)


def describe(run: Run) -> dict:
    record = run.record
    return dict(
        cell=run.cell,
        method=run.method,
        seed=run.seed,
        iterations=run.iterations,
        factor=run.factor,
        metrics=run.metrics,
        commit=record["commit"],
        device=record.get("device", "unknown"),
        seconds=round(record["seconds"]),
        command=record["command"],
    )


def cell_differences(results: Sequence[dict], cell: str, samples: dict, old: Sequence[dict]) -> Iterator[dict]:
    """Yield each method's difference from the plain student, and CLoCKDistill's from each other method.

    A difference is over the seeds that both have.

    Args:
        results: of all runs.
        samples: AP (RESAMPLES,) on resampled images by `key_of` the run.
        old: differences of an earlier report, whose intervals are kept where samples are missing.
    """
    ap = {(r["method"], r["seed"]): r["metrics"]["AP"] or 0.0 for r in results if r["cell"] == cell}
    methods = list(dict.fromkeys(method for method, _ in ap if method not in (PLAIN, TEACHER)))
    pairs = [(PLAIN, method) for method in methods] + [(method, FULL) for method in methods if method != FULL]
    for baseline, method in pairs:
        seeds = sorted(seed for m, seed in ap if m == method and (baseline, seed) in ap)
        if not seeds:
            continue
        values = [ap[method, seed] - ap[baseline, seed] for seed in seeds]
        difference = dict(cell=cell, baseline=baseline, method=method, seeds=seeds, AP=values)
        if samples.keys() >= {key_of(cell, name, seed) for name in (baseline, method) for seed in seeds}:
            pair = [[samples[key_of(cell, name, seed)] for seed in seeds] for name in (method, baseline)]
            yield difference | bootstrap_difference(*(np.stack(seed_samples, dtype=float) for seed_samples in pair))
        else:
            kept = [d for d in old if d.items() >= difference.items()]
            yield kept[0] if kept else difference | dict(interval=None, deviation=None)


def resample(run: Run) -> np.ndarray:
    """Return the AP (RESAMPLES,) on images drawn with replacement, the same for all runs with the same test set.

    Raises:
        UserError: the detections are not those of the run's AP.
    """
    evaluation = match_detections(annotations_of(run), read_json(run.folder / "coco_instances_results.json"))
    images = len(evaluation.params.imgIds)
    weights = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    ap, *resampled = resampled_ap(evaluation, np.vstack([np.ones(images, int), weights]))
    if abs(ap - (run.metrics["AP"] or 0.0)) > 1e-6:
        raise UserError(f"the detections in {run.folder} have AP {ap:.3f} and not that of its results.json: remove it")
    return np.array(resampled, np.float16)  # precise to 0.03 AP, in a small file


def annotations_of(run: Run) -> str:
    """Return the file with the annotations that a run was evaluated with."""
    written = next(run.folder.glob("*_coco_format.json"), None)
    if written:
        return str(written)
    name = execute_config(str(run.folder / "config.yaml")).dataloader.test.dataset.names
    return os.path.expandvars(name.split(":")[1])


def bootstrap_difference(method: np.ndarray, baseline: np.ndarray) -> dict:
    """Return the percentile interval and the deviation of the mean difference, over resampled seeds and images.

    Args:
        method, baseline: AP (S, B) of S seeds on B resamples of the images.
    """
    differences = method - baseline
    # not the generator's seed of `resample`, or the draws of seeds would depend on those of images
    seeds = np.random.default_rng(1).integers(len(differences), size=differences.shape)
    means = np.take_along_axis(differences, seeds, 0).mean(0)
    tail = (100 - CONFIDENCE) / 2
    return dict(interval=np.nanpercentile(means, [tail, 100 - tail]).tolist(), deviation=float(np.nanstd(means)))


def write_summary(matrices: Sequence[dict], folder: Path) -> str:
    """Write two tables to the page: each method's gain by cell, and CLoCKDistill's average lead over each.

    A gain over the plain student is bold if its interval excludes zero. Variants of CLoCKDistill are left out of the
    averages, whose intervals are those of a normal distribution, with independent cells. Matrices without other
    methods, such as an ablation, are left out altogether. If there are only these, the page keeps its summary.
    """
    matrices = [matrix for matrix in matrices if has_other_methods(matrix)]
    gains: dict[str, dict[str, str]] = {method: {} for matrix in matrices for method in matrix["methods"]}
    leads: dict[str, list[dict]] = {}
    for matrix in matrices:
        for d in read_json(folder / RESULTS / f"{matrix['name']}.json")["differences"]:
            if d["baseline"] == PLAIN:
                gains.setdefault(d["method"], {})[f"{matrix['title']}, {d['cell']}"] = short_gain(d)
            method = methods_of(matrix, d["cell"]).get(d["baseline"])
            if d["method"] == FULL and d["interval"] and (d["baseline"] == PLAIN or isinstance(method, dict)):
                leads.setdefault(d["baseline"], []).append(d)
    cells = list(dict.fromkeys(cell for row in gains.values() for cell in row))
    if not cells:
        return ""
    rows = [[method, *(row.get(cell, "") for cell in cells)] for method, row in gains.items() if row]
    averages = [[method, len(found), gain(average(found))] for method, found in leads.items()]
    headers = ["method", "cells", f"{FULL} minus it, in AP [{CONFIDENCE}%]"]
    text = f"{markdown(rows, ['method', *cells])}\n\n{markdown(averages, headers)}"
    insert(folder / PAGE, "summary", text)
    return text


def has_other_methods(matrix: dict) -> bool:
    methods = [method for cell in matrix["cells"] for method in methods_of(matrix, cell).values()]
    return any(isinstance(method, dict) for method in methods)


def short_gain(difference: dict) -> str:
    mean, interval = f"{statistics.mean(difference['AP']):+.1f}", difference["interval"]
    return f"**{mean}**" if interval and (interval[0] > 0 or interval[1] < 0) else mean


def average(differences: Sequence[dict]) -> dict:
    means = [statistics.mean(d["AP"]) for d in differences]
    mean = statistics.mean(means)
    deviation = math.hypot(*(d["deviation"] for d in differences)) / len(differences)
    normal = statistics.NormalDist(mean, deviation)
    tail = (1 - CONFIDENCE / 100) / 2
    return dict(AP=means, interval=[normal.inv_cdf(tail), normal.inv_cdf(1 - tail)] if deviation else [mean, mean])


def tables(matrix: dict, results: Sequence[dict], differences: Sequence[dict]) -> str:
    """Format a table of metrics and one of classes for each cell, as mean ± sample standard deviation over seeds."""
    parts = []
    for cell in matrix["cells"]:
        rows = methods_in_order(matrix, cell, results)
        if not rows:
            continue
        gains = {(d["baseline"], d["method"]): d for d in differences if d["cell"] == cell}
        main = [
            [
                *(method, len(metrics), *(mean_std(metrics, name) for name in METRICS)),
                *(gain(gains.get(pair)) for pair in ((PLAIN, method), (method, FULL))),
            ]
            for method, metrics in rows.items()
        ]
        headers = ["method", "runs", *METRICS, f"minus {PLAIN} [{CONFIDENCE}%]", f"{FULL} minus it [{CONFIDENCE}%]"]
        classes = [name for name in next(iter(rows.values()))[0] if name.startswith("AP-")]
        by_class = [[method, *(mean_std(metrics, name) for name in classes)] for method, metrics in rows.items()]
        parts += [f"**{matrix['title']}, {cell}**", markdown(main, headers)]
        parts += [markdown(by_class, ["method", *classes])] if classes else []
    return "\n\n".join(parts)


def methods_in_order(matrix: dict, cell: str, results: Sequence[dict]) -> dict[str, list[dict]]:
    """Return the metrics of each method's runs."""
    order = [TEACHER, PLAIN, *methods_of(matrix, cell)]
    found = {m: [r["metrics"] for r in results if (r["cell"], r["method"]) == (cell, m)] for m in order}
    return {method: metrics for method, metrics in found.items() if metrics}


def mean_std(metrics: Sequence[dict], name: str) -> str:
    """Format mean ± sample standard deviation; "-" if a run lacks the metric."""
    values = [m.get(name) for m in metrics]
    if None in values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def gain(difference: dict | None) -> str:
    if difference is None:
        return ""
    mean = f"{statistics.mean(difference['AP']):+.1f}"
    return mean if difference["interval"] is None else f"{mean} [{{:+.1f}}, {{:+.1f}}]".format(*difference["interval"])


def markdown(rows: Sequence[Sequence], headers: Sequence[str]) -> str:
    alignment = ("left", *("right" for _ in headers[1:]))
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=alignment)


def insert(path: Path, name: str, text: str) -> None:
    """Replace what is between the comments `<!-- NAME -->` and `<!-- end of NAME -->` of a page.

    A page without these comments gets them at its end, and a new one a place for the summary first.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = (
        path.read_text(encoding="utf-8") if path.is_file() else "# Results\n\n<!-- summary --><!-- end of summary -->\n"
    )
    before, found, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        before, after = f"{page.rstrip()}\n\n", "\n"
    path.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def plot_bars(matrix: dict, results: Sequence[dict], path: Path) -> None:
    """Plot the mean AP of each method, with its standard deviation, in one panel per cell."""
    cells = {cell: rows for cell in matrix["cells"] if (rows := methods_in_order(matrix, cell, results))}
    height = 0.8 + 0.26 * max(map(len, cells.values()))
    figure = Figure(figsize=(1.2 + 3.2 * len(cells), height), dpi=150, facecolor="white", layout="constrained")
    for axes, (cell, rows) in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells.items(), strict=True):
        ap = [[m["AP"] or 0.0 for m in metrics] for metrics in rows.values()]
        deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in ap]
        colors = ["#C9CED6" if method in (TEACHER, PLAIN) else "#3B6FB6" for method in rows]
        axes.barh(list(rows), [statistics.mean(values) for values in ap], xerr=deviations, color=colors, capsize=3)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(title=cell, xlabel="AP")
    figure.savefig(path)
