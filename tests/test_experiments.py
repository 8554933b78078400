"""Runs of experiments: what is done, skipped, resumed and tuned."""

import _thread
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

import experiment_matrix
import experiments
from clockdistill.errors import UserError
from helpers.documents import ROOT
from helpers.experiments import MATRIX, TUNING, calls, runs, with_teacher


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
    matrix = {key: value for key, value in MATRIX.items() if key != "name"}
    (project / "toy.py").write_text(f"matrix = {matrix!r}")
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
    with pytest.raises(
        UserError, match="no run has method=fgd seed=0: method may be plain, clockdistill; seed may be 0, 1"
    ):
        experiments.select(runs(), [("method", "fgd"), ("seed", "0")])


def test_main_names_failed_runs(main, capsys):
    Path("failing").write_text(str(runs()[1].folder))
    assert main("run", "--only", "seed=0") == 1
    assert capsys.readouterr().err == "error: these runs failed: toy dino clockdistill seed 0\n"


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


def test_script_is_executable():
    assert os.access(ROOT / "tools/experiments.py", os.X_OK)
