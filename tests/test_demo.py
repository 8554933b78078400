"""The demo except for its training: tables, summary over seeds, files and failures."""

import json
import re
import statistics
import sys
import time
from pathlib import Path

import pytest

import demo
from clockdistill.engine import load_config
from clockdistill.errors import UserError
from experiment_matrix import load_matrix, runs_of
from experiments import read_factors


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def pair(student, distilled):
    return {"student": {"AP": student, "AP50": 0.0}, "distilled": {"AP": distilled, "AP50": 0.0}}


def test_summary_has_mean_and_sample_standard_deviation():
    summary = demo.summarize({3: pair(20.0, 22.0), 5: pair(21.0, 24.5), 8: pair(25.0, 26.0)})
    assert summary["seeds"] == [3, 5, 8]
    assert summary["AP"]["difference"] == [2.0, 3.5, 1.0]
    assert summary["mean"] == pytest.approx({"student": 22.0, "distilled": 72.5 / 3, "difference": 6.5 / 3})
    assert summary["std"]["student"] == pytest.approx(7**0.5)
    assert summary["std"]["difference"] == pytest.approx(statistics.stdev([2.0, 3.5, 1.0]))
    assert json.loads(json.dumps(summary)) == summary


def test_seeds_table():
    summary = demo.summarize({0: pair(20.0, 22.0), 1: pair(21.0, 20.5)})
    header, _, *rows = cells(demo.seeds_table(summary))
    assert header == ["seed", "AP of the student", "AP of the distilled student", "difference"]
    assert rows == [
        ["0", "20.0", "22.0", "+2.0"],
        ["1", "21.0", "20.5", "-0.5"],
        ["mean ± std", "20.5 ± 0.7", "21.2 ± 1.1", "+0.8 ± 1.8"],
    ]


def test_one_seed_has_no_standard_deviation():
    summary = demo.summarize({0: pair(20.0, 22.0)})
    assert summary["std"] == {"student": None, "distilled": None, "difference": None}
    assert cells(demo.seeds_table(summary))[-1] == ["mean ± std", "20.0", "22.0", "+2.0"]


@pytest.mark.parametrize(
    ("family", "student"), [(family, student) for student in demo.STUDENTS for family in demo.STUDENTS[student]]
)
def test_every_student_has_its_configs(family, student):
    for name in demo.MODELS:
        assert (demo.ROOT / demo.config_of(family, name, student)).is_file()


@pytest.mark.parametrize(("cell", "student"), [("dino", "tiny"), ("dino_light", "light")])
def test_the_pair_is_trained_as_in_the_results(monkeypatch, cell, student):
    monkeypatch.chdir(demo.ROOT)
    factors = {method: chosen["factor"] for method, chosen in read_factors().items()}
    runs = {run.method: run for run in runs_of(load_matrix("tools/matrices/street.py"), factors) if run.cell == cell}
    for name, method in {"student": "plain", "distilled": "balance"}.items():
        result = load_config(runs[method].arguments[1], runs[method].arguments[3:])
        trained = load_config(demo.config_of("dino", name, student), demo.OVERRIDES[name])
        trained.train.update({key: result.train[key] for key in ("output_dir", "eval_period", "seed")})
        assert trained == result


def test_a_student_without_config_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--families", "dino", "dab_detr", "--student", "light"])
    with pytest.raises(SystemExit):
        demo.main()
    assert "no light dab_detr: choose --families from deformable_detr, dino" in capsys.readouterr().err


def test_each_student_has_its_own_output():
    assert [demo.output_of("dino", student).name for student in demo.STUDENTS] == ["dino", "dino_light"]


def test_families_are_those_with_a_teacher():
    assert demo.FAMILIES == demo.STUDENTS["tiny"] == ["dab_detr", "deformable_detr", "dino"]
    assert demo.STUDENTS["light"] == ["deformable_detr", "dino"]


@pytest.fixture
def fake_train_net(tmp_path, monkeypatch):
    """A working directory where tests write their own train_net.py."""
    script = tmp_path / "projects/CLoCKDistill/train_net.py"
    script.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return script


PROGRESS = (
    "[11/22 16:00:00 d2.utils.events]:  eta: 0:01:02  iter: 19  total_loss: 4.2  loss_class: 1  loss_bbox: 2  lr: 0.1"
)


def test_training_starts_in_an_empty_folder_and_shows_its_progress(fake_train_net, monkeypatch, capsys):
    fake_train_net.write_text(
        "import pathlib, sys\n"
        "out = pathlib.Path(sys.argv[-1].removeprefix('train.output_dir='))\n"
        "assert not out.exists()\n"
        "out.mkdir(parents=True)\n"
        "(out / 'args').write_text(' '.join(sys.argv[1:]))\n"
        f"print('Model: ...'); print({PROGRESS!r})\n"
    )
    monkeypatch.setattr(demo, "PROGRESS_PERIOD", 0)
    Path("out").mkdir()
    Path("out/last_checkpoint").write_text("model_0000999.pth")
    demo.train_net("some/config.py", Path("out"), "train.seed=3", name="student")
    assert Path("out/args").read_text() == "--config-file some/config.py train.seed=3 train.output_dir=out"
    assert capsys.readouterr().out.split() == ["student", "eta:", "0:01:02", "iter:", "19", "total_loss:", "4.2"]


def test_error_of_a_failed_training_names_the_log(fake_train_net, capsys):
    fake_train_net.write_text("import sys; print('error: no teacher', file=sys.stderr); sys.exit(7)")
    with pytest.raises(UserError, match=r"train_net.py failed with c.py \(exit status 7\): see .* out/log.txt"):
        demo.train_net("c.py", Path("out"))
    assert capsys.readouterr().err == "error: no teacher\n"


def test_one_failure_stops_the_other_training(fake_train_net, capsys):
    fake_train_net.write_text(
        "import sys, time\n"
        "if '_to_' in sys.argv[2]: sys.exit('error: no teacher')\n"
        "for _ in range(600): print('still training', flush=True); time.sleep(0.1)\n"
    )
    start = time.monotonic()
    with pytest.raises(UserError, match=Path(demo.config_of("dab_detr", "distilled", "tiny")).name):
        demo.train_pair("dab_detr", "tiny", 0, Path("out"))
    assert time.monotonic() - start < 30
    assert capsys.readouterr().err == "error: no teacher\n"


def test_the_exported_student_is_run_by_detect(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for script in ("projects/CLoCKDistill/export.py", "deploy/detect.py"):
        Path(script).parent.mkdir(parents=True)
        Path(script).write_text("import sys; print(*sys.argv)")
    demo.export_and_detect("c.py", Path("model.pth"), Path("000007.png"), Path("out"))
    export = "export.py --config-file c.py --output out/distilled.onnx --opts train.init_checkpoint=model.pth"
    detect = "detect.py --model out/distilled.onnx --input 000007.png --output out/detections"
    assert re.findall(r"\S+/(\w+\.py .*)", capfd.readouterr().out) == [export, detect]
    Path(script).write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=r"deploy/detect.py failed: see the message above"):
        demo.export_and_detect("c.py", Path("model.pth"), Path("000007.png"), Path("out"))


def test_failure_prints_one_sentence_and_exits_with_1(monkeypatch, capsys, tmp_path):
    def fail():
        raise UserError("no street today: build one")

    monkeypatch.setattr(demo, "make_data", fail)
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    monkeypatch.setenv("DETECTRON2_DATASETS", "somewhere")
    monkeypatch.chdir(tmp_path)
    assert demo.main() == 1
    assert capsys.readouterr().err == "error: no street today: build one\n"
