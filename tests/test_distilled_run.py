"""train_net.py as a user runs it: distill, get interrupted, resume, evaluate the student; and its errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

import make_street_scenes
import train_net
from clockdistill.engine import load_config, run
from helpers.distillation import save_teacher
from helpers.models import CONFIGS, tiny_config

STUDENT, TEACHER = CONFIGS / "dino" / "dino_r18_tiny_street.py", CONFIGS / "dino" / "dino_r18_small_street.py"
DISTILLED = CONFIGS / "dino" / "dino_r18_small_to_tiny_street.py"
# narrower than the teacher, so that there are projections
NARROW = [
    "train.init_checkpoint=''",
    "model.encoder.embed_dim=64",
    "model.backbone.width=8",
    "dataloader.train.total_batch_size=2",
]

# a student that shares no level with its teacher
ONE_FINE_LEVEL = (
    "model.neck.in_features=[res2]",
    "model.neck.in_channels=[8]",
    "model.encoder.num_levels=1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with street scenes and a teacher with random weights."""
    folder = tmp_path_factory.mktemp("place")
    make_street_scenes.make(folder / "street_scenes", train=4, val=2, seed=0, size=(320, 96), jobs=1)
    torch.manual_seed(0)
    torch.save({"model": instantiate(load_config(str(TEACHER)).model).state_dict()}, folder / "teacher.pth")
    return folder


def arguments(place, output, config, *options):
    """A command line for a short run; the given options come last and take precedence."""
    flags = [option for option in options if option.startswith("--")]
    overrides = [option for option in options if not option.startswith("--")]
    teacher = [f"distillation.teacher.checkpoint={place / 'teacher.pth'}"] if config == DISTILLED else []
    short = [f"train.output_dir={output}", "dataloader.train.num_workers=0", "train.log_period=1", *NARROW]
    return ["--config-file", str(config), *flags, *short, *teacher, *overrides]


def command(place, *args):
    environment = os.environ | {"DETECTRON2_DATASETS": str(place), "CUDA_VISIBLE_DEVICES": ""}
    script = [sys.executable, train_net.__file__, *arguments(place, *args)]
    return dict(args=script, env=environment, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def distilled(place):
    """Output folder of a distillation that was killed in the middle and resumed."""
    output = place / "distilled"
    endless = (
        "train.max_iter=100000",
        "train.checkpointer.period=2",
        "train.eval_period=0",
        "distillation.gradient_share_period=1",
    )
    # to a file, because a full pipe would block the process
    log = (place / "log").open("w")
    process = subprocess.Popen(**command(place, output, DISTILLED, *endless), stdout=log)
    deadline = time.monotonic() + 120
    while not (output / "last_checkpoint").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    log.close()
    assert (output / "last_checkpoint").exists(), (place / "log").read_text()
    shutil.copytree(output, place / "killed")
    last = torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)["iteration"]
    options = ("--resume", f"train.max_iter={last + 3}", "train.eval_period=0", "distillation.gradient_share_period=1")
    done = subprocess.run(**command(place, output, DISTILLED, *options), check=False, text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stdout
    assert f"Starting training from iteration {last + 1}" in done.stdout
    return output


def test_resume_continues_with_hook_and_projections(place, distilled):
    killed = place / "killed"
    name = (killed / "last_checkpoint").read_text().replace(".pth", ".resume.pth")
    before = torch.load(killed / name, weights_only=True)["trainer"]
    name = (distilled / "last_checkpoint").read_text().replace(".pth", ".resume.pth")
    after = torch.load(distilled / name, weights_only=True)["trainer"]
    projections = [state["hooks"]["DistillationHook"] for state in (before, after)]
    weight = "losses.memory.projection.weight"
    expected = {weight, "losses.memory.projection.bias", "query_adapter.content.weight", "query_adapter.content.bias"}
    assert projections[0].keys() == projections[1].keys() == expected
    change = (projections[0][weight] - projections[1][weight]).abs().max()
    assert 0 < change < 0.02, "three small steps from the saved state, not from a new one"
    assert after["iteration"] == before["iteration"] + 2


def test_metrics_have_every_term_and_its_gradient_share(distilled):
    lines = [json.loads(line) for line in (distilled / "metrics.json").read_text().splitlines()]
    lines = [line for line in lines if "total_loss" in line]
    terms = {"memory_object", "memory_background", "logits_class", "logits_bbox", "logits_giou"}
    assert {f"loss_{term}" for term in terms} | {"loss_class", "loss_giou_dn", "loss_bbox_enc"} <= lines[-1].keys()
    shares = [value for key, value in lines[-1].items() if key.startswith("gradient_share/")]
    assert len(shares) == len(terms) + 1
    assert sum(shares) == pytest.approx(1)


def test_the_checkpoint_is_the_plain_student(place, distilled, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(place))
    saved = torch.load(distilled / "model_final.pth", weights_only=True)
    assert saved.keys() == {"model", "iteration", "metadata"}
    student = instantiate(load_config(str(STUDENT), NARROW).model)
    assert {name: value.shape for name, value in saved["model"].items()} == {
        name: value.shape for name, value in student.state_dict().items()
    }
    weights = f"train.init_checkpoint={distilled / 'model_final.pth'}"
    assert call(place, place / "evaluated", STUDENT, "--eval-only", weights) == 0
    assert "AP" in json.loads((place / "evaluated" / "results.json").read_text())["bbox"]


def call(place, output, config, *options):
    """Exit status of train_net.py, within this process."""
    args = train_net.parse_args(arguments(place, output, config, *options))
    return run(train_net.main, args)


@pytest.mark.parametrize(
    ("teacher", "student", "embedding"),
    [
        ("deformable_detr", "deformable_detr", "calibrated"),
        ("dab_detr", "dab_detr", "calibrated"),
        ("dino", "dab_detr", "denoising"),
    ],
)
def test_any_family_is_distilled_resumed_and_evaluated(place, tmp_path, monkeypatch, teacher, student, embedding):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(place))
    cfg = load_config(str(CONFIGS / student / f"{student}_r50_to_r18_kitti_50ep.py"))
    cfg.model = tiny_config(student, num_classes=5)
    cfg.dataloader = load_config(str(STUDENT)).dataloader
    cfg.distillation.update(embedding=embedding, calibration=dict(batches=1, steps=1, lr=1e-3))
    cfg.distillation.teacher = save_teacher(tmp_path, teacher, num_classes=5)
    distilled, plain, output = tmp_path / "distilled.yaml", tmp_path / "plain.yaml", tmp_path / "output"
    LazyConfig.save(cfg, str(distilled))
    del cfg.distillation
    LazyConfig.save(cfg, str(plain))

    assert call(place, output, distilled, "train.max_iter=2", "train.eval_period=0") == 0
    assert (tmp_path / "teacher.targets.pth").is_file() == (embedding == "calibrated")
    assert call(place, output, distilled, "--resume", "train.max_iter=3", "train.eval_period=0") == 0
    saved = torch.load(output / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 2
    assert saved["model"].keys() == instantiate(cfg.model).state_dict().keys()
    assert call(place, output, plain, "--eval-only", f"train.init_checkpoint={output / 'model_final.pth'}") == 0
    assert "AP" in json.loads((output / "results.json").read_text())["bbox"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("distillation.teacher.checkpoint=pruned.pth",), "encoder.level_embed"),
        (("dataloader.train.dataset.names=coco_2017_val", "model.num_classes=80"), "instances_val2017.json"),
        (("model.encoder.embed_dim=100",), "embed_dim 100 must be a multiple of 32"),
        (ONE_FINE_LEVEL, "levels of stride 8, 16, 32 and the student's of 4"),
    ],
    ids=["teacher unset", "no COCO", "width", "levels"],
)
def test_errors_are_one_sentence_at_the_start(place, tmp_path, monkeypatch, capsys, options, sentence):
    """Errors in data, overrides and paths are tested in data/test_faults.py."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(place))
    monkeypatch.chdir(tmp_path)
    weights = torch.load(place / "teacher.pth", weights_only=True)["model"]
    weights.pop("encoder.level_embed")
    torch.save({"model": weights}, "pruned.pth")
    assert call(place, tmp_path / "output", DISTILLED, "train.max_iter=1", *options) == 1
    printed = capsys.readouterr()
    assert "UserError" not in printed.out + printed.err, "there must be no traceback"
    error = printed.err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error
    assert not list(Path(tmp_path / "output").glob("*.pth"))
