"""Matrices of experiments: commands, what is run, skipped, resumed and reported."""

import _thread
import json
import os
import shutil
import signal
import statistics
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import experiment_matrix
import experiment_report
import experiments
from clockdistill.engine import load_config
from clockdistill.errors import UserError
from helpers.documents import ROOT

MATRICES = sorted(path for path in (ROOT / "tools/matrices").glob("*.py") if path.stem != "methods")
MATRIX = dict(
    name="toy",
    title="Toy",
    data="toy",
    seeds=[0, 1],
    iterations=10,
    methods=dict(clockdistill=[]),
    cells=dict(dino=dict(student="dino/dino_r18_tiny_street.py", distilled="dino/dino_r18_small_to_tiny_street.py")),
)
TEACHER = dict(config="dino/dino_r18_small_street.py", iterations=20, seed=7)

# Finishes at once, or fails or waits if a file says so.
TRAIN_NET = """
import json, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[-1].removeprefix("train.output_dir="))
with open("calls", "a") as file:
    print(out, file=file)
if str(out) in pathlib.Path("failing").read_text().split():
    sys.exit("error: no teacher")
if str(out) in pathlib.Path("waiting").read_text().split() and not (out / "model_0000004.pth").exists():
    def stop(*_):
        (out / "model_0000004.pth").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (out / "metrics.json").write_text(json.dumps(dict(iteration=4)))
    time.sleep(60)
(out / "model_0000009.pth").touch()
(out / "model_final.pth").touch()
(out / "results.json").write_text(json.dumps(dict(bbox={"AP": 12.5, "AP50": 20.0, "AP-Car": None})))
"""


def runs(matrix=MATRIX, **factors):
    return experiment_matrix.runs_of(matrix, factors)


def with_teacher():
    cell = MATRIX["cells"]["dino"] | dict(teacher=TEACHER)
    return MATRIX | dict(cells=dict(dino=cell))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with the configs, and a train_net.py that finishes at once."""
    (tmp_path / "projects/CLoCKDistill").mkdir(parents=True)
    (tmp_path / experiment_matrix.CONFIGS).symlink_to(ROOT / experiment_matrix.CONFIGS)
    (tmp_path / experiment_matrix.TRAIN_NET).write_text(TRAIN_NET)
    for name in ("calls", "failing", "waiting"):
        (tmp_path / name).touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results.md").write_text("# Results\n<!-- toy -->\nold\n<!-- end of toy -->\nThe end\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "POLL_SECONDS", 0.01)
    return tmp_path


def calls():
    return Path("calls").read_text().split()


# --- matrices


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_methods_differ_from_the_plain_student_in_their_distillation_alone(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    matrix = experiment_matrix.load_matrix(str(path))
    first = {(r.cell, r.method): r for r in reversed(experiment_matrix.with_teachers(runs(matrix, fgd=3.0)))}
    plain = {}
    for (cell, method), run in sorted(first.items(), key=lambda item: item[0][1] != "plain"):
        cfg = load_config(run.arguments[1], run.arguments[3:])
        assert run.seed == cfg.train.seed
        assert run.iterations == cfg.train.max_iter
        if method == "teacher":
            continue
        distillation = cfg.pop("distillation", None)
        assert (distillation is None) == (method == "plain")
        cfg.train.pop("output_dir")
        text = OmegaConf.to_yaml(cfg, sort_keys=True)
        assert plain.setdefault(cell, text) == text, method


def test_a_cell_may_have_iterations_of_its_own():
    cells = {
        name: MATRIX["cells"]["dino"] | options for name, options in dict(dino={}, slow=dict(iterations=30)).items()
    }
    assert {(run.cell, run.iterations) for run in runs(MATRIX | dict(cells=cells))} == {("dino", 10), ("slow", 30)}
    trials = experiment_matrix.tuning_runs(MATRIX | dict(cells=cells, tuning=TUNING | dict(cell="slow")))
    assert {(run.cell, run.iterations) for run in trials} == {("slow", 5)}


def test_losses_replace_those_of_the_config_and_all_weights_have_the_factor(monkeypatch):
    monkeypatch.chdir(ROOT)
    matrix = experiment_matrix.load_matrix("tools/matrices/street.py")
    run = next(r for r in runs(matrix, fgd=3.0) if (r.method, r.cell) == ("fgd", "dino"))
    distillation = load_config(run.arguments[1], run.arguments[3:]).distillation
    assert {name for name, loss in distillation.losses.items() if loss is not None} == {"fgd"}
    fgd = distillation.losses.fgd
    weights = [fgd[f"{name}_weight"] for name in ("object", "background", "attention", "global")]
    assert weights == pytest.approx([1.8e-2, 9e-3, 1.8e-2, 9e-5])
    assert fgd.temperature == 0.5
    assert fgd._target_.endswith("FGDLoss")


def test_variants_have_the_factor_of_clockdistill(monkeypatch):
    monkeypatch.chdir(ROOT)
    matrix = experiment_matrix.load_matrix("tools/matrices/ablation.py")
    run = next(r for r in runs(matrix, clockdistill=2.0) if r.method == "matched logits")
    losses = load_config(run.arguments[1], run.arguments[3:]).distillation.losses
    assert losses.memory.alpha == pytest.approx(0.2)
    assert losses.logits.l1_weight == pytest.approx(10.0)
    assert losses.logits.weight_by_confidence is True
    assert losses.logits._target_.endswith("MatchedLogitLoss")


def test_other_methods_and_the_plain_student_have_no_factor_of_clockdistill(monkeypatch):
    monkeypatch.chdir(ROOT)
    matrix = experiment_matrix.load_matrix("tools/matrices/street.py")
    factors = {run.method: run.factor for run in runs(matrix, clockdistill=3.0, mgd=0.3)}
    untuned = dict.fromkeys(("plain", "fitnets", "fgd", "kd_detr", "detrdistill"), 1.0)
    assert factors == untuned | {"clockdistill": 3.0, "balance": 3.0, "mgd": 0.3, "with hint": 3.0}


def test_a_balanced_method_has_its_ratios_scaled():
    distillation = OmegaConf.create(dict(losses=dict(memory=dict(alpha=0.1)), balance=dict(memory=1.0, logits=0.5)))
    assert dict(experiment_matrix.weights_of(distillation)) == {"balance.memory": 1.0, "balance.logits": 0.5}


def test_students_start_from_the_teacher_that_is_trained_first():
    teacher = experiment_matrix.with_teachers(runs(with_teacher()))[0]
    assert (teacher.method, teacher.seed, teacher.iterations) == ("teacher", 7, 20)
    weights = f"{teacher.folder}/model_final.pth"
    for run in runs(with_teacher())[1:]:
        assert run.teacher == teacher
        assert f"train.init_checkpoint={weights}" in run.overrides
        assert (f"distillation.teacher.checkpoint={weights}" in run.overrides) == (run.method != "plain")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrices = {}", r"has no `matrix`"),
        ("matrix = dict(title='')", r"has no matrix.cells"),
        (
            "matrix = dict(title='', data='', seeds=[], iterations=1, methods={}, cells=dict(a={}))",
            r"cells.a.distilled",
        ),
        (
            "matrix = dict(title='', data='', seeds=[], iterations=1, methods={}, cells=dict(a=dict(student='', "
            "distilled='', teacher=dict(config='', iterations=1, seed=0, lr=1))))",
            r"unknown key matrix.cells.a.teacher.lr: choose config, iterations, seed",
        ),
        (
            "matrix = dict(title='', data='', seeds=[], iterations=1, methods={}, cells=dict(a=dict(student='', "
            "distilled='', iteration=2)))",
            r"unknown key matrix.cells.a.iteration: choose distilled, iterations, methods, student, teacher",
        ),
        (
            "matrix = dict(title='', data='', seeds=[], iterations=1, methods={}, cells={}, tuning=dict(seed=1))",
            r"has no matrix.tuning.cell",
        ),
        (
            "matrix = dict(title='', data='', seeds=[], iterations=1, methods={}, cells={}, "
            "tuning=dict(cell='', seed=1, factors=[1, 3]))",
            r"has 2 matrix.tuning.factors: give 4",
        ),
    ],
)
def test_wrong_matrices_are_refused(text, message, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        experiment_matrix.load_matrix(str(path))


# --- run


def test_runs_are_done_once_and_leave_no_checkpoint_to_resume_from(project):
    assert experiments.execute(runs(), jobs=2) == []
    assert sorted(calls()) == sorted(str(run.folder) for run in runs())
    for run in runs():
        assert run.is_done
        assert sorted(path.name for path in run.folder.glob("*.pth")) == ["model_final.pth"]
    assert experiments.execute(runs(), jobs=2) == []
    assert len(calls()) == 4


def test_a_failed_run_does_not_stop_the_others_and_is_repeated_by_the_next_call(project, capsys):
    failing = runs()[1]
    Path("failing").write_text(str(failing.folder))
    assert experiments.execute(runs(), jobs=1) == [failing]
    assert [run.is_done for run in runs()] == [True, False, True, True]
    assert "clockdistill seed 0: failed, see" in (out := capsys.readouterr().out)
    assert "error: no teacher" in out
    Path("failing").write_text("")
    assert experiments.execute(runs(), jobs=1) == []
    assert calls()[4:] == [str(failing.folder)]


def test_students_wait_for_their_teacher_and_fail_with_it(project):
    students = runs(with_teacher())[1:]
    teacher = students[0].teacher
    Path("failing").write_text(str(teacher.folder))
    assert experiments.execute(students, jobs=2) == [teacher, *students]
    assert calls() == [str(teacher.folder)]
    Path("failing").write_text("")
    assert experiments.execute(students, jobs=2) == []
    assert calls()[1] == str(teacher.folder)
    assert len(calls()) == 6


def test_a_run_of_another_command_is_refused(project):
    experiments.execute(runs(), jobs=2)
    with pytest.raises(UserError, match=r"clockdistill/seed0/run.json has another command than the matrix: remove"):
        experiments.execute(runs(clockdistill=3.0), jobs=2)


@pytest.fixture
def main(project, monkeypatch):
    """Call the script on the toy matrix in the working directory."""
    (project / "toy.py").write_text(f"matrix = {MATRIX!r}")
    monkeypatch.setattr(experiments, "ROOT", project)
    monkeypatch.setenv("DETECTRON2_DATASETS", "somewhere")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # a job in the background of a shell ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments.py", arguments[0], "toy.py", *arguments[1:]])
        try:
            return experiments.main()
        except SystemExit as exit:
            return exit.code

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_is_resumed(main, number, status):
    stopped = runs()[0]
    Path("waiting").write_text(str(stopped.folder))

    ended = threading.Event()

    def stop():
        while not (stopped.folder / "metrics.json").exists():
            if ended.wait(0.01):
                return
        # unlike a signal that is sent, it cannot end the process of the tests
        _thread.interrupt_main(number)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert main("run", "--jobs", "1") == status
    finally:
        ended.set()
        thread.join()
    assert not stopped.is_done
    assert stopped.progress == 0.5
    assert (stopped.folder / "model_0000004.pth").exists()
    assert calls() == [str(stopped.folder)]
    assert main("run") == 0
    assert calls().count(str(stopped.folder)) == 2


def test_time_left_is_that_of_similar_runs(project):
    plain, distilled, *_ = runs()
    assert experiments.seconds_left(runs(), jobs=2) is None
    experiments.execute([plain, distilled], jobs=2)
    for run, seconds in ((plain, 100.0), (distilled, 140.0)):
        (run.folder / "run.json").write_text(json.dumps(run.record | dict(seconds=seconds)))
    third = runs()[2]
    third.folder.mkdir(parents=True)
    (third.folder / "metrics.json").write_text('{"iteration": 1}\n{"iteration": 4}\n')
    assert experiments.seconds_left(runs(), jobs=2) == pytest.approx((50 + 140) / 2)


def test_status_shows_ap_progress_and_what_is_missing(project):
    experiments.execute(runs()[:1], jobs=1)
    second = runs()[1]
    Path("failing").write_text(str(second.folder))
    experiments.execute([second], jobs=1)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in experiments.status_table(runs()).splitlines()
    ]
    assert rows[2:] == [["toy", "dino", "plain", "12.5", ""], ["toy", "dino", "clockdistill", "0%", ""]]


def test_only_selects_by_cell_method_and_seed():
    selected = experiments.select(runs(), [("method", "plain"), ("seed", "1"), ("seed", "0")])
    assert [(run.method, run.seed) for run in selected] == [("plain", 0), ("plain", 1)]
    with pytest.raises(UserError, match="no run has method=fgd seed=0"):
        experiments.select(runs(), [("method", "fgd"), ("seed", "0")])


def test_main_names_failed_runs(main, capsys):
    Path("failing").write_text(str(runs()[1].folder))
    assert main("run", "--only", "seed=0") == 1
    assert capsys.readouterr().err == "error: these runs failed: toy dino clockdistill seed 0\n"


# --- tune


TUNING = dict(cell="dino", seed=100, factors=[0.1, 0.3, 1, 3], iterations=5, overrides=["model.num_queries=30"])


def test_trials_have_the_iterations_and_overrides_of_the_tuning():
    trials = experiment_matrix.tuning_runs(MATRIX | dict(overrides=["model.num_classes=3"], tuning=TUNING))
    assert [(run.method, run.seed) for run in trials] == [(f"clockdistill x{f}", 100) for f in TUNING["factors"]]
    assert all(run.iterations == 5 for run in trials)
    assert all({"model.num_classes=3", "model.num_queries=30"} <= set(run.arguments) for run in trials)
    with pytest.raises(UserError, match="toy has no tuning"):
        experiment_matrix.tuning_runs(MATRIX)


@pytest.mark.parametrize(("ap", "best", "left_out"), [([9.0, 8.0, 7.0, 0], 0.1, 3), ([0, 7.0, 8.0, 7.5], 1, 0.1)])
def test_tuning_takes_its_third_step_in_the_better_direction(project, ap, best, left_out):
    trials = experiment_matrix.tuning_runs(MATRIX | dict(tuning=TUNING))
    text = Path(experiment_matrix.TRAIN_NET).read_text()
    by_folder = {str(run.folder): value for run, value in zip(trials, ap, strict=True)}
    Path(experiment_matrix.TRAIN_NET).write_text(text.replace("12.5", f"{by_folder}[str(out)]"))
    assert experiments.tune(trials, jobs=2) == []
    chosen = experiments.choose_factors(trials)["clockdistill"]
    expected = dict(zip(TUNING["factors"], ap, strict=True))
    del expected[left_out]
    assert chosen == dict(factor=best, AP=expected)
    experiments.tune(trials, jobs=2)
    assert len(calls()) == 3


def test_tuning_names_failed_trials(project):
    trials = experiment_matrix.tuning_runs(MATRIX | dict(tuning=TUNING))
    Path("failing").write_text(str(trials[1].folder))
    assert experiments.tune(trials, jobs=2) == [trials[1]]


# --- report

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
    rows = table_rows(experiment_report.write_report(MATRIX, runs()))
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
    text = experiment_report.write_report(MATRIX, runs())
    assert "+3.0 [" in text
    written = Path("docs/results/toy.json").read_text()
    shutil.rmtree("output")
    assert experiment_report.write_report(MATRIX, runs()) == text
    assert Path("docs/results/toy.json").read_text() == written
    # but not for runs of other commands
    with pytest.raises(UserError, match="no run of the matrix toy is done"):
        experiment_report.write_report(MATRIX, [replace(run, iterations=11) for run in runs()])


def test_new_methods_are_compared_with_runs_that_are_gone(project, monkeypatch):
    ap = AP | dict(balance=[16.0, 17.0])
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, ap[run.method][run.seed]))
    write_results()
    experiment_report.write_report(MATRIX, runs())
    shutil.rmtree("output")
    matrix = MATRIX | dict(methods=dict(clockdistill=[], balance=[]))
    new = [run for run in runs(matrix) if run.method == "balance"]
    experiments.execute(new, jobs=2)
    for run in new:
        (run.folder / "results.json").write_text(json.dumps(dict(bbox=dict(AP=ap["balance"][run.seed]))))
    rows = table_rows(experiment_report.write_report(matrix, runs(matrix)))
    assert rows[3][-2:] == ["+3.0 [+1.0, +5.0]", ""]
    assert rows[4][-2:] == ["+5.0 [+4.0, +6.0]", "-2.0 [-3.0, -1.0]"]


def test_a_repeated_run_replaces_its_earlier_results(project, monkeypatch):
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, AP[run.method][run.seed]))
    write_results()
    experiment_report.write_report(MATRIX, runs())
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.full(1000, 19.0))
    repeated = next(run for run in runs() if run.method == "clockdistill")
    (repeated.folder / "results.json").write_text(json.dumps(dict(bbox=dict(AP=19.0))))
    rows = table_rows(experiment_report.write_report(MATRIX, runs()))
    assert rows[3][-2] == "+5.0 [+1.0, +9.0]"


def test_report_needs_a_place_on_the_page(project, monkeypatch):
    write_results()
    monkeypatch.setattr(experiment_report, "resample", lambda run: np.zeros(2))
    Path("docs/results.md").write_text("# Results\n")
    with pytest.raises(
        UserError, match=r"no place for the results: add the lines <!-- toy --> and <!-- end of toy -->"
    ):
        experiment_report.write_report(MATRIX, runs())
    assert not Path("docs/results").exists()


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
    experiment_report.write_report(matrix, trained)
    rows = table_rows(experiment_report.write_summary([matrix]))
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
    # nothing to summarize
    assert experiment_report.write_summary([]) == ""
    assert experiment_report.write_summary([matrix | dict(methods=dict(clockdistill=[], balance=[]))]) == ""
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


def test_script_is_executable():
    assert os.access(ROOT / "tools/experiments.py", os.X_OK)
