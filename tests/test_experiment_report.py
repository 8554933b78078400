"""Reports of experiments: tables, intervals and what is kept of runs that are gone."""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import experiment_matrix
import experiment_report
import experiments
from clockdistill.errors import UserError
from helpers.experiments import MATRIX, runs

DOCS = Path("docs")
AP = dict(plain=[10.0, 13.0], clockdistill=[15.0, 14.0])


def write_results():
    experiments.execute(runs(), jobs=2)
    for run in runs():
        metrics = {"AP": AP[run.method][run.seed], "AP50": 30.0, "AP-Car": 5.0, "AP-Van": None}
        (run.folder / "results.json").write_text(json.dumps(dict(bbox=metrics)))


def table_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_report_has_means_deviations_and_differences(project, monkeypatch):
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, AP[run.method][run.seed]))
    write_results()
    rows = table_rows(experiment_report.write_report(MATRIX, runs(), DOCS))
    plain, distilled = rows[2:4]
    deviation = statistics.stdev(AP["plain"])
    assert plain[:-2] == ["plain", "2", f"11.5 ± {deviation:.1f}", "30.0 ± 0.0", "-", "-", "-", "-"]
    assert distilled[2] == f"14.5 ± {statistics.stdev(AP['clockdistill']):.1f}"
    # the seeds' differences are 5 and 1, and one of four bootstrap samples has either seed alone
    assert plain[-2:] == ["", "+3.0 [+1.0, +5.0]"]
    assert distilled[-2:] == ["+3.0 [+1.0, +5.0]", ""]
    assert rows[4:] == [["method", "AP-Car", "AP-Van"], rows[5], *[[m, "5.0 ± 0.0", "-"] for m in AP]]
    page = Path("docs/results.md").read_text()
    assert page.startswith("# Results\n<!-- toy -->\n\n**Toy, dino**\n\n|")
    assert page.endswith("![Toy](results/toy.png)\n\n<!-- end of toy -->\nThe end\n")
    assert Path("docs/results/toy.png").stat().st_size > 0


def test_report_works_from_its_own_json_when_the_runs_are_gone(project, monkeypatch):
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, AP[run.method][run.seed]))
    write_results()
    text = experiment_report.write_report(MATRIX, runs(), DOCS)
    assert "+3.0 [" in text
    written = Path("docs/results/toy.json").read_text()
    shutil.rmtree("output")
    assert experiment_report.write_report(MATRIX, runs(), DOCS) == text
    assert Path("docs/results/toy.json").read_text() == written
    # but not for runs of other commands
    with pytest.raises(UserError, match="no run of the matrix toy is done"):
        experiment_report.write_report(MATRIX, [replace(run, iterations=11) for run in runs()], DOCS)


def test_new_methods_are_compared_with_runs_that_are_gone(project, monkeypatch):
    ap = AP | dict(balance=[16.0, 17.0])
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, ap[run.method][run.seed]))
    write_results()
    experiment_report.write_report(MATRIX, runs(), DOCS)
    shutil.rmtree("output")
    matrix = MATRIX | dict(methods=dict(clockdistill=[], balance=[]))
    new = [run for run in runs(matrix) if run.method == "balance"]
    experiments.execute(new, jobs=2)
    for run in new:
        (run.folder / "results.json").write_text(json.dumps(dict(bbox=dict(AP=ap["balance"][run.seed]))))
    rows = table_rows(experiment_report.write_report(matrix, runs(matrix), DOCS))
    assert rows[3][-2:] == ["+3.0 [+1.0, +5.0]", ""]
    assert rows[4][-2:] == ["+5.0 [+4.0, +6.0]", "-2.0 [-3.0, -1.0]"]


def test_a_repeated_run_replaces_its_earlier_results(project, monkeypatch):
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, AP[run.method][run.seed]))
    write_results()
    experiment_report.write_report(MATRIX, runs(), DOCS)
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, 19.0))
    repeated = next(run for run in runs() if run.method == "clockdistill")
    (repeated.folder / "results.json").write_text(json.dumps(dict(bbox=dict(AP=19.0))))
    rows = table_rows(experiment_report.write_report(MATRIX, runs(), DOCS))
    assert rows[3][-2] == "+5.0 [+1.0, +9.0]"


def test_a_page_without_the_matrix_gets_its_tables_at_the_end(project, monkeypatch):
    write_results()
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.zeros(2))
    (DOCS / "results.md").write_text("# Results\n\nThe end\n")
    text = experiment_report.write_report(MATRIX, runs(), DOCS)
    page = (DOCS / "results.md").read_text()
    assert page.startswith(f"# Results\n\nThe end\n\n<!-- toy -->\n\n{text}\n\n![Toy](results/toy.png)")
    assert page.endswith("\n\n<!-- end of toy -->\n")
    experiment_report.write_report(MATRIX, runs(), DOCS)
    assert (DOCS / "results.md").read_text() == page


def test_matrices_outside_of_the_repository_have_a_report_of_their_own(project, tmp_path, monkeypatch):
    """Also if it has the name of one in the repository."""
    folder = tmp_path / "mine"
    assert experiments.report_folder([MATRIX | dict(folder=str(folder))] * 2) == folder
    assert experiments.report_folder([MATRIX | dict(folder=str(tmp_path / "tools/matrices"))]) == DOCS
    with pytest.raises(UserError, match=r"one report cannot have matrices of .*mine and .*matrices: "):
        experiments.report_folder([MATRIX | dict(folder=str(tmp_path / name)) for name in ("mine", "tools/matrices")])
    before = (DOCS / "results.md").read_text()
    write_results()
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.zeros(2))
    matrix = MATRIX | dict(methods=dict(clockdistill=[], fitnets={}))
    experiment_report.write_report(matrix, runs(), folder)
    experiment_report.write_summary([matrix], folder)
    page = (folder / "results.md").read_text()
    assert page.index("<!-- summary -->\n\n| method") < page.index("<!-- toy -->\n\n**Toy, dino**")
    assert sorted(path.name for path in (folder / "results").iterdir()) == ["toy.json", "toy.npz", "toy.png"]
    assert (DOCS / "results.md").read_text() == before
    assert not (DOCS / "results").exists()


def test_summary_shows_gains_and_averages_leads_over_cells(project, monkeypatch):
    """Two cells, in which a method and a variant of CLoCKDistill were trained besides."""
    ap = AP | dict(fitnets=[12.0, 12.0], balance=[15.0, 15.0])
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, ap[run.method][run.seed]))
    matrix = MATRIX | dict(methods=dict(clockdistill=[], fitnets={}, balance=[]))
    matrix["cells"] = dict.fromkeys(("dino", "dab_detr"), MATRIX["cells"]["dino"])
    monkeypatch.setattr(experiment_matrix, "load", lambda config: OmegaConf.create(dict(distillation=dict(losses={}))))
    with open("docs/results.md", "a") as page:
        page.write("<!-- summary -->\n<!-- end of summary -->\n")
    trained = experiment_matrix.runs_of(matrix, {})
    experiments.execute(trained, jobs=2)
    for run in trained:
        metrics = dict(AP=ap[run.method][run.seed] + (run.cell == "dab_detr") * (run.method == "clockdistill"))
        (run.folder / "results.json").write_text(json.dumps(dict(bbox=metrics)))
    experiment_report.write_report(matrix, trained, DOCS)
    rows = table_rows(experiment_report.write_summary([matrix], DOCS))
    assert rows[0] == ["method", "Toy, dino", "Toy, dab_detr"]
    # bold if no seed has a loss
    assert rows[2:5] == [
        ["clockdistill", "**+3.0**", "**+4.0**"],
        ["fitnets", "+0.5", "+0.5"],
        ["balance", "**+3.5**", "**+3.5**"],
    ]
    rows = rows[7:]
    # differences of the seeds 5 and 1 (plain), 3 and 2 (fitnets); the mean of two has half their spread, that of two
    # cells 1/sqrt(2) of it
    plain, fitnets = 1.96 * 2 / 2, 1.96 * 0.5 / 2
    assert [row[:2] for row in rows] == [["plain", "2"], ["fitnets", "2"]]
    for row, mean, half in zip(rows, (3.5, 3.0), (plain, fitnets), strict=True):
        values = [float(value) for value in row[2].replace("[", "").replace("]", "").replace(",", "").split()]
        assert values == pytest.approx([mean, mean - half, mean + half], abs=0.11)
    page = Path("docs/results.md").read_text()
    assert rows[0][2] in page
    # the methods keep their order if the first cell lacks one
    written = Path("docs/results/toy.json")
    results = json.loads(written.read_text())
    results["differences"] = [d for d in results["differences"] if (d["cell"], d["method"]) != ("dino", "fitnets")]
    written.write_text(json.dumps(results))
    rows = table_rows(experiment_report.write_summary([matrix], DOCS))
    assert [row[0] for row in rows[2:5]] == ["clockdistill", "fitnets", "balance"]
    # nothing to summarize
    page = Path("docs/results.md").read_text()
    assert experiment_report.write_summary([], DOCS) == ""
    assert experiment_report.write_summary([matrix | dict(methods=dict(clockdistill=[], balance=[]))], DOCS) == ""
    assert Path("docs/results.md").read_text() == page


def test_interval_covers_seeds_and_images():
    rng = np.random.default_rng(3)
    plain = rng.normal(10, 1, (4, 2000))
    # the images' noise is shared by a pair, and cancels
    method = plain + np.array([[1.0], [2.0], [3.0], [4.0]])
    low, high = experiment_report.bootstrap_difference(method, plain)["interval"]
    means = [np.mean(rng.choice([1, 2, 3, 4], 4)) for _ in range(20000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.26)
    assert experiment_report.bootstrap_difference(method, plain)["deviation"] == pytest.approx(np.std(means), rel=0.1)
    # with one seed, the images alone
    images = rng.normal(0, 1, (1, 2000))
    interval = experiment_report.bootstrap_difference(plain[:1] + images, plain[:1])["interval"]
    assert tuple(interval) == pytest.approx(tuple(np.percentile(images, [2.5, 97.5])))


def test_detections_must_be_those_of_the_results(project):
    run = runs()[0]
    experiments.execute([run], jobs=1)
    box = dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9])
    truth = dict(images=[dict(id=1)], categories=[dict(id=1)], annotations=[box | dict(id=1, area=81, iscrowd=0)])
    (run.folder / "street_val_coco_format.json").write_text(json.dumps(truth))
    (run.folder / "coco_instances_results.json").write_text(json.dumps([box | dict(score=0.5)]))
    with pytest.raises(UserError, match=r"seed0 have AP 100.000 and not that of its results.json"):
        experiment_report.resample(run)
    (run.folder / "results.json").write_text(json.dumps(dict(bbox=dict(AP=100.0))))
    assert experiment_report.resample(run).tolist() == [100.0] * experiment_report.RESAMPLES


def test_the_path_of_the_annotations_may_contain_a_variable(project, monkeypatch):
    run = runs()[0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text("dataloader: {test: {dataset: {names: 'coco:$DATA/val.json'}}}")
    monkeypatch.setenv("DATA", "/data")
    assert experiment_report.annotations_of(run) == "/data/val.json"
