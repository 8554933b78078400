"""Matrices of experiments and the commands of their runs."""

import pytest
from omegaconf import OmegaConf

import experiment_matrix
from clockdistill.engine import load_config
from clockdistill.errors import UserError
from helpers.documents import ROOT
from helpers.experiments import MATRIX, TUNING, runs, with_teacher

MATRICES = sorted(path for path in (ROOT / "tools/matrices").glob("*.py") if path.stem != "methods")


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
            "matrix = dict(title='', data='', seeds=[], iterations=1, cells={}, overides=[])",
            r"unknown key matrix.overides: choose cells, .*overrides",
        ),
        (
            "matrix = dict(title='', data='', seeds=[], iterations=1, cells={}, methods=['fitnet'])",
            r"unknown method fitnet: choose from clockdistill, balance, fitnets",
        ),
        (
            "matrix = dict(title='', data='', seeds=[], iterations=1, cells={}, methods='fitnets')",
            r"has matrix.methods='fitnets': give a dictionary or a list of names",
        ),
        (
            "matrix = dict(title='', data='', seeds=[], iterations=1, methods={}, cells={}, "
            "tuning=dict(cell='', seed=1, factors=[1, 3]))",
            r"has 2 matrix.tuning.factors: give 4",
        ),
    ],
)
def test_wrong_matrices_are_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        experiment_matrix.load_matrix(str(path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ["clockdistill", "balance", "fitnets", "fgd", "mgd", "kd_detr", "detrdistill"]),
        ("methods=['mgd', 'fgd']", ["mgd", "fgd"]),
    ],
    ids=["all", "by name"],
)
def test_a_matrix_elsewhere_has_the_methods_of_the_repository(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "mine.py"
    path.write_text(f"matrix = dict(title='', data='', seeds=[], iterations=1, cells={{}}, {given})")
    matrix = experiment_matrix.load_matrix(str(path))
    assert list(matrix["methods"]) == expected
    assert matrix["folder"] == str(tmp_path)
    street = experiment_matrix.load_matrix(str(ROOT / "tools/matrices/street.py"))
    assert all(street["methods"][name] == method for name, method in matrix["methods"].items())


def test_configs_and_overrides_are_checked_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cell = MATRIX["cells"]["dino"]
    experiment_matrix.check_runs(runs())
    own = tmp_path / "student.yaml"
    own.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(model=dict(num_queries=3)))))
    (plain, *_) = runs(MATRIX | dict(cells=dict(dino=cell | dict(student=str(own)))))
    assert plain.arguments[1] == str(own)
    experiment_matrix.check_runs([plain])
    with pytest.raises(UserError, match=r"toy dino plain seed 0: .*dino_r18_tinny\.py does not exist"):
        experiment_matrix.check_runs(
            runs(MATRIX | dict(cells=dict(dino=cell | dict(student="dino/dino_r18_tinny.py"))))
        )
    with pytest.raises(UserError, match=r"plain seed 0: unknown config key model\.num_clases: did you mean"):
        experiment_matrix.check_runs(runs(MATRIX | dict(overrides=["model.num_clases=3"])))


def test_trials_have_the_iterations_and_overrides_of_the_tuning():
    trials = experiment_matrix.tuning_runs(MATRIX | dict(overrides=["model.num_classes=3"], tuning=TUNING))
    assert [(run.method, run.seed) for run in trials] == [(f"clockdistill x{f}", 100) for f in TUNING["factors"]]
    assert all(run.iterations == 5 for run in trials)
    assert all({"model.num_classes=3", "model.num_queries=30"} <= set(run.arguments) for run in trials)
    with pytest.raises(UserError, match="toy has no tuning"):
        experiment_matrix.tuning_runs(MATRIX)
