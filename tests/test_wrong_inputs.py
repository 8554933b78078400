"""A table of wrong values, files and command lines.

Each ends with one sentence and a non-zero exit status, without a traceback. Nothing is written or changed.
"""

import json
import pickle
import re
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import make_street_scenes
import predict
import train_net
import visualize
from clockdistill.data import check
from clockdistill.engine import load_config, run
from clockdistill.errors import UserError
from clockdistill.modeling.weights import load_weights
from helpers.models import CONFIGS

pytestmark = pytest.mark.usefixtures("loggers")

STUDENT = CONFIGS / "dino/dino_r18_tiny_street.py"
DISTILLED = CONFIGS / "dino/dino_r18_small_to_tiny_street.py"
TEACHER = CONFIGS.parent / "demo/dino_r18_small_street.pth"
TEACHER_CONFIG = CONFIGS / "dino/dino_r18_small_street.py"
CAR = "Car 0.00 0 1.85 10.00 12.00 30.00 40.00 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"

# values that break a rule, by key; the message names the key and says what the value must be
COUNTS = [
    *(f"model.encoder.{name}" for name in ("num_layers", "embed_dim", "num_heads", "num_points", "feedforward_dim")),
    *("model.num_classes", "model.num_queries", "model.detections_per_image", "model.encoder.num_levels"),
    *("model.decoder.num_layers", "model.decoder.num_heads", "model.denoising.num_queries", "model.backbone.width"),
    *("train.max_iter", "train.log_period", "train.checkpointer.period", "train.checkpointer.max_to_keep"),
    *("train.benchmark.images", "train.benchmark.rounds", "train.max_nonfinite_steps", "train.accumulate"),
    "dataloader.train.total_batch_size",
]
NOT_NEGATIVE = [
    *(f"model.criterion.{name}" for name in ("class_weight", "l1_weight", "giou_weight", "gamma")),
    *(f"model.criterion.matcher.{name}" for name in ("class_weight", "l1_weight", "giou_weight", "gamma")),
    "model.denoising.box_noise",
]
FRACTIONS = [
    *("model.criterion.alpha", "model.criterion.ignore_overlap", "model.criterion.matcher.alpha"),
    "model.denoising.label_noise",
]
VALUES = {
    **{key: [0, -1, 1.5, "many"] for key in COUNTS},
    **{key: [-1, "nan", "inf"] for key in NOT_NEGATIVE},
    **{key: [-0.1, 2, "nan"] for key in FRACTIONS},
    "train.clip_grad": [0, -1, "nan"],
    "train.ema.decay": [1, 2, -0.5],
    "train.amp.dtype": ["int8", "float64"],
    "train.device": ["tpu", "cuda:1", "null"],
    "train.eval_period": [-1],
    "train.seed": ["soon", 5000000000],
    "train.ema": ["null"],
    "train.amp": ["null"],
    "train.strict_data": ["perhaps"],
    "train.output_dir": ["''", "FILE/run", "/proc/run"],
    "model.backbone.norm": ["XYZ"],
    "model.backbone.depth": [19],
    "model.backbone.freeze_at": [-1, 6],
    "model.backbone.out_features": ["[]", "[res9]"],
    "model.neck.in_features": ["[res2,res3,res9]", "[]"],
    "model.neck.in_channels": ["[1,2,3]", "[16,32]"],
    "model.encoder.activation_checkpointing": ["2", "all"],
    "model.pixel_mean": ["[1,2]", "[nan,0,0]"],
    "model.pixel_std": ["[0,1,1]"],
    "model.position_embedding.temperature": [0, -1],
    "model.position_embedding.offset": ["nan"],
    "dataloader.train.num_workers": [-1],
    "dataloader.train.mapper.image_format": ["XYZ", "BGR"],
    "dataloader.test.mapper.image_format": ["XYZ"],
}
DISTILLATION_VALUES = {
    "distillation.losses.memory.alpha": [-1, "nan"],
    "distillation.losses.memory.beta": [-1, "inf"],
    "distillation.losses.logits.class_weight": [-1],
    "distillation.losses.logits.l1_weight": [-1],
    "distillation.losses.logits.giou_weight": ["nan"],
    "distillation.losses.logits.temperature": [0, -1],
    "distillation.gradient_share_period": [-1],
    "distillation.level_pairing": ["size"],
    "distillation.balance": ["1", "{}", "[memory]", "{memorie: 1.0}", "{memory: 0}", "{memory: -1.0}", "{logits: nan}"],
    "distillation.balance_period": [0],
}
# overrides whose message is another one
OVERRIDES = {
    "lr": (["optimizer.lr=-1"], "optimizer cannot be built: Invalid learning rate: -1"),
    "lr nan": (["optimizer.lr=nan"], "optimizer cannot be built: Invalid learning rate: nan"),
    "weight decay": (["optimizer.weight_decay=-1"], "optimizer cannot be built: Invalid weight_decay"),
    "betas": (["optimizer.betas=[2,0.9]"], "optimizer cannot be built: Invalid beta"),
    "optimizer": (["optimizer._target_=torch.optim.Nothing"], "optimizer cannot be built: .*Nothing"),
    "warmup": (["lr_multiplier.warmup_method=quadratic"], "lr_multiplier cannot be built: "),
    "workers for testing": (["dataloader.test.num_workers=-1"], "dataloader.test cannot be built: num_workers"),
    "width of the transformer": (["model.encoder.embed_dim=100"], "embed_dim 100 must be a multiple of"),
    "heads": (["model.encoder.num_heads=7"], "must be a multiple of num_heads 7"),
    "other classes": (["model.num_classes=3"], "has 5 classes and the model 3: set model.num_classes=5"),
    "classes in another order": (
        ["dataloader.test.dataset.names=kitti:ROOT:train:Van+Car+Truck+Pedestrian+Cyclist"],
        "class 0 of the dataset .*:Car.* is Car, which is class 1 of the dataset .*:Van.*: give all data the same",
    ),
    "two test sets": (
        ["dataloader.test.dataset.names=[kitti:ROOT:train:Car,kitti:ROOT:train:Van]"],
        "dataloader.test.dataset.names is a list, but a model is evaluated on one dataset at a time",
    ),
    "levels": (["model.neck.num_levels=7"], "model.neck.num_levels cannot be 7: it must be 3, as in the encoder"),
    "unused stage": (
        [
            "model.backbone.out_features=[res3,res4,res5]",
            "model.neck.in_features=[res3,res4]",
            "model.neck.in_channels=[16,32]",
        ],
        "model.neck.in_features cannot be .*: it must be a list with res5 too, or remove these from the backbone's out",
    ),
    "unknown key": (["train.max_iters=3"], "unknown config key train.max_iters: did you mean train.max_iter"),
    "unknown section": (["trian.max_iter=3"], "unknown config key trian.max_iter"),
    "no value": (["train.max_iter"], "write config overrides as key=value"),
    "flag after the overrides": (["train.max_iter=3", "--resume"], "--resume comes too late: write flags before"),
    "unbalanced": (["model.pixel_mean=[1,2"], "cannot parse the override"),
    "deletion": (["~train.max_iter=3"], "deleting keys and sweeps are not supported"),
    "list for a number": (["train.max_iter=[1,2]"], r"train\.max_iter cannot be \[1, 2\]: it must be an integer"),
    "number for a group": (["model.encoder=3"], "model.encoder cannot be 3: it must be a group"),
    "unknown dataset": (["dataloader.test.dataset.names=streets"], "streets is not in Detectron2's catalog"),
    "names that are no text": (["dataloader.train.dataset.names=[1]"], r"names cannot be '\[1\]': it must be text"),
    "path without a prefix": (
        ["dataloader.test.dataset.names=val.json"],
        r"val\.json is not in Detectron2's catalog: write dataloader\.test\.dataset\.names=coco:val\.json",
    ),
    "no training data": (["dataloader.train=null"], "the config has no dataloader.train: import one"),
    "unresolved reference": (["train.seed='${oc.env:NOPE}'"], "NOPE"),
    "unresolved reference in the model": (["model.num_queries='${nothing}'"], "model: .*nothing"),
    "no dataset there": (["dataloader.test.dataset.names=kitti:/no:val"], "no KITTI dataset at /no"),
    "malformed dataset": (["dataloader.train.dataset.names=coco:"], "write coco:ANNOTATIONS.json"),
    "no classes": (["dataloader.train.dataset.names=kitti:ROOT:train:+"], "invalid classes"),
    "nothing to load": (["train.init_checkpoint=nowhere.pth"], r"checkpoint nowhere\.pth does not exist"),
    "two-stage": (["--config-file", "deformable_detr", "model.two_stage=True", "model.decoder.refine=False"], "refine"),
    "patterns": (["--config-file", "dab_detr", "model.num_patterns=-1"], "model.num_patterns cannot be -1"),
    "dilation": (["--config-file", "dab_detr", "model.backbone.dilate_res5=True"], "does not support dilation"),
    "augmentation": (
        ["dataloader.train.mapper.augmentations.0._target_=detectron2.X"],
        "cannot be built: .*detectron2.X",
    ),
}
DISTILLATION_OVERRIDES = {
    "no losses": (
        ["distillation.losses.memory=null", "distillation.losses.logits=null"],
        "distillation.losses is empty",
    ),
    "embedding": (["distillation.embedding=best"], "choose one of denoising, calibrated, random"),
    "feature": (["distillation.losses.memory.feature=pixels"], "choose memory or backbone"),
    "no teacher": (
        ["distillation.teacher.checkpoint=nowhere.pth"],
        r"teacher checkpoint nowhere\.pth does not exist: train the teacher first, or set distillation",
    ),
    "no path": (["distillation.teacher.checkpoint=''"], r"set distillation\.teacher\.checkpoint=PATH"),
    "no teacher's config": (["distillation.teacher.config=nowhere.py"], r"config file nowhere\.py does not exist"),
    "config without model": (["distillation.teacher.config=EMPTY"], "has no `model`"),
    "other teacher": (["distillation.teacher.config=SMALL"], "does not set|does not have"),
    "teacher's classes in another order": (
        ["distillation.teacher.checkpoint=MOVED"],
        r"class 0 of the dataset .* is Car, which is class 1 of the teacher",
    ),
    "NaN teacher": (
        ["distillation.teacher.checkpoint=NAN"],
        r"nan\.pth has NaN or infinite values .*: use a checkpoint",
    ),
    "invalid teacher": (["distillation.teacher.config=INVALID"], "teacher config .*model.num_queries cannot be 0"),
    "calibration": (
        ["distillation.embedding=calibrated", "distillation.calibration=null"],
        "must have the keys batches",
    ),
    "unknown loss": (["+distillation.losses.mine={_target_: nowhere.Loss}"], "losses.mine cannot be built"),
    "fine level": (["model.neck.in_features=[res2]"], "in_channels"),
}
# what a checkpoint contains, and the message
CHECKPOINTS = {
    "empty.pth": (b"", "cannot be read as a checkpoint"),
    "text.pth": (b"version https://git-lfs.github.com/spec/v1", "cannot be read as a checkpoint"),
    "half.pth": (TEACHER.read_bytes()[:100_000], "cannot be read as a checkpoint"),
    "state.pth": ({"trainer": {"iteration": 3}}, "contains no model weights"),
    "list.pth": ([1, 2, 3], "contains no model weights"),
    "listed.pth": ({"model": [1, 2, 3]}, "contains no model weights"),
    # cut off, in the format of torch before version 1.6
    "old.pth": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "cannot be read as a checkpoint"),
    "code.pth": ({"model": {"a": torch.zeros(1)}, "path": CONFIGS}, "not safe to load, since it contains pathlib"),
    "code.pyth": ({"model_state": {"a": torch.zeros(1)}, "path": CONFIGS}, "not safe to load"),
    "code.pkl": (
        pickle.dumps({"model": {}, "__author__": print}),
        "not safe to load, since it contains builtins.print",
    ),
    "text.pkl": (b"no pickle", "cannot be read as a checkpoint"),
    "empty.pkl": (pickle.dumps({}), "contains no model weights"),
    "list.pkl": (pickle.dumps([1]), "contains no model weights"),
    "values.pkl": (pickle.dumps({"a": "text"}), "contains no model weights"),
    "nan.pth": (None, "has NaN or infinite values in 1 parameters or buffers, such as class_heads.0.bias"),
}
TRAIN_FLAGS = {
    "other order of classes": (
        f"--eval-only --config-file {TEACHER_CONFIG} train.init_checkpoint=TEACHER "
        "dataloader.test.dataset.names=kitti:ROOT:train:Van+Car+Truck+Pedestrian+Cyclist",
        r"class 0 of the model in .*\.pth is Car, which is class 1 of the dataset",
    ),
    "negative GPUs": ("--num-gpus -1", "--num-gpus cannot be -1"),
    "too many processes": ("--num-gpus 99", r"--num-gpus is 99, but this machine has (no GPU and )?\d+"),
    "text for GPUs": ("--num-gpus all", "invalid int value: 'all'"),
    "no machines": ("--num-machines 0", "--num-machines cannot be 0"),
    "negative machines": ("--num-machines -2", "--num-machines cannot be -2"),
    "rank too high": ("--num-machines 2 --machine-rank 2 --dist-url tcp://localhost:9", "from 0 to 1"),
    "negative rank": ("--machine-rank -1", "--machine-rank cannot be -1"),
    "rank of one machine": ("--machine-rank 1", "--machine-rank cannot be 1"),
    "auto on two machines": ("--num-machines 2 --dist-url auto", "--dist-url auto works on one machine only"),
    "other scheme": ("--num-gpus 2 --dist-url ftp://localhost:29500", "write tcp://HOST:PORT"),
    "no port": ("--num-gpus 2 --dist-url tcp://localhost", "write tcp://HOST:PORT"),
    "no number": ("--num-gpus 2 --dist-url tcp://localhost:port", "write tcp://HOST:PORT"),
    "port too high": ("--num-gpus 2 --dist-url tcp://localhost:99999", "write tcp://HOST:PORT"),
    "port in use": ("--num-gpus 2 --dist-url tcp://localhost:PORT", "cannot be used .*: choose another port"),
    "no config": ("--config-file nowhere.py", r"config file nowhere\.py does not exist"),
    "comparison in training": ("--compare a=b.py:c.pth", "add --eval-only"),
    "nothing to compare": ("--eval-only --compare a", "cannot parse --(compare|model) 'a': write NAME="),
    "no folder name": ("--eval-only --compare ../a=STUDENT:TEACHER", "not a valid folder name"),
    "the same name twice": (
        "--eval-only --compare a=STUDENT:TEACHER --compare a=STUDENT:TEACHER",
        "two models of --compare have the name a",
    ),
    "missing checkpoint": ("--eval-only --compare a=STUDENT:nowhere.pth", r"nowhere\.pth does not exist"),
    "missing config": ("--eval-only --compare a=nowhere.py:TEACHER", r"nowhere\.py does not exist"),
    "no weights": ("--eval-only train.init_checkpoint=''", "no trained weights are given"),
    "other model's weights": ("--eval-only train.init_checkpoint=TEACHER", r"does not set \d+ parameters"),
}
WITH_VALUE = ("--config-file", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url", "--compare")
PREDICT = f"--config-file {STUDENT} --input ROOT/training/image_2 --output NEW"
TRAINED = (
    f"--config-file {TEACHER_CONFIG} --opts train.init_checkpoint=TEACHER "
    "dataloader.test.dataset.names=kitti:ROOT:train:Car+Van+Truck+Pedestrian+Cyclist"
)
PROGRAMS = [
    (predict, f"{PREDICT} --threshold 2", "2 is not between 0 and 1"),
    (predict, f"{PREDICT} --threshold nan", "nan is not between 0 and 1"),
    (predict, f"{PREDICT} --threshold high", "invalid score value: 'high'"),
    (predict, f"--config-file {STUDENT} --input nowhere.png --output NEW", r"nowhere\.png does not exist"),
    (predict, f"--config-file {STUDENT} --input ROOT --output NEW", "has no images"),
    (predict, f"--config-file {STUDENT} --input ROOT/train.json --output NEW", "does not open as a video"),
    (predict, f"--config-file {STUDENT} --output NEW", "--input"),
    (predict, f"{PREDICT} --opts train.init_checkpoint=nowhere.pth", r"nowhere\.pth does not exist"),
    (predict, f"{PREDICT} --opts train.init_checkpoint=''", "no trained weights are given"),
    (predict, f"--config-file {STUDENT} --input ROOT/training/image_2 --output ROOT/training/image_2", "output folder"),
    (
        predict,
        f"{TRAINED} --input ROOT/training/image_2 --output NEW --model a.onnx",
        "leave out --config-file and --opts",
    ),
    (predict, f"{TRAINED} --input ROOT/training/image_2 --output FILE", "--output .*file cannot be created .*: set it"),
    (visualize, f"{TRAINED} --output FILE", "--output .*file cannot be created .*: set it"),
    (visualize, f"{TRAINED} dataloader.test.dataset.names=streets --output NEW", "streets is not in Detectron2's cat"),
    (visualize, f"--config-file {STUDENT} --output NEW --worst 0", "0 is not at least 1"),
    (visualize, f"--config-file {STUDENT} --output NEW --first -1", "-1 is not at least 1"),
    (visualize, f"--config-file {STUDENT} --output NEW --threshold 7", "7 is not between 0 and 1"),
    (visualize, f"--config-file {STUDENT} --output NEW --model a", "cannot parse --(compare|model) 'a': write NAME="),
    (visualize, f"--config-file {STUDENT} --output NEW --opts train.init_checkpoint=''", "no trained weights"),
    (make_street_scenes, "--root NEW --train -1", "expected a number of at least 0, got '-1'"),
    (make_street_scenes, "--root NEW --train 0 --val 0", "must be at least 1"),
    (make_street_scenes, "--root NEW --jobs 0", "must be at least 1"),
    (make_street_scenes, "--root NEW --size 3x3", "expected WIDTHxHEIGHT of at least 32x32"),
    (make_street_scenes, "--root NEW --size large", "expected WIDTHxHEIGHT"),
    (make_street_scenes, "--root ROOT --train 1 --val 1", "already exists with other contents"),
    (check, "streets --output NEW/chart.png", "unknown dataset streets"),
    (check, "coco:nowhere.json --output NEW/chart.png", r"nowhere\.json does not exist"),
    (check, "kitti:/no:train --output NEW/chart.png", "no KITTI dataset at /no"),
]


def cases():
    """Yield (title, program, arguments, message)."""
    for config, values in ((STUDENT, VALUES), (DISTILLED, DISTILLATION_VALUES)):
        for key, wrong in values.items():
            for value in wrong:
                message = f"{re.escape(key.removesuffix('FILE'))} (cannot be|/).*"
                yield f"{key}={value}", train_net, ["--config-file", str(config), f"{key}={value}"], message
    for config, table in ((STUDENT, OVERRIDES), (DISTILLED, DISTILLATION_OVERRIDES)):
        for title, (overrides, message) in table.items():
            arguments = list(overrides)
            if arguments[0] == "--config-file":
                arguments[1] = str(CONFIGS / f"{arguments[1]}/{arguments[1]}_r18_tiny_street.py")
            else:
                arguments[:0] = ["--config-file", str(config)]
            yield title, train_net, arguments, message
    for name, (_, message) in CHECKPOINTS.items():
        for flag in ("--eval-only", "--num-gpus=0"):
            arguments = ["--config-file", str(STUDENT), flag, f"train.init_checkpoint=ROOT/{name}"]
            yield f"{name} {flag}", train_net, arguments, message
    for title, (text, message) in TRAIN_FLAGS.items():
        config = [] if "--config-file" in text else ["--config-file", str(STUDENT)]
        yield title, train_net, [*config, *text.split()], message
    for program, text, message in PROGRAMS:
        yield f"{program.__name__} {text.replace(str(STUDENT), '')}", program, text.split(), message


CASES = list(cases())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A valid dataset, an output folder with files of an earlier run, and checkpoints and configs that are wrong."""
    root = tmp_path_factory.mktemp("wrong")
    for folder in ("training/image_2", "training/label_2", "ImageSets", "out"):
        (root / folder).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels).save(root / f"training/image_2/{number:06d}.png")
        (root / f"training/label_2/{number:06d}.txt").write_text(f"{CAR}\n")
    (root / "ImageSets/train.txt").write_text("000000\n000001\n")
    (root / "train.json").write_text(json.dumps(dict(images=[], annotations=[], categories=[dict(id=1, name="Car")])))
    for name in ("config.yaml", "log.txt", "metrics.json", "results.json"):
        (root / "out" / name).write_text("of an earlier run")
    for name, (content, _) in CHECKPOINTS.items():
        path = root / name
        if content is None:
            weights = torch.load(TEACHER, weights_only=True)
            weights["model"]["class_heads.0.bias"] = weights["model"]["class_heads.0.bias"].float() * float("nan")
            torch.save(weights, path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
    weights = torch.load(TEACHER, weights_only=True)
    weights["metadata"]["class_names"][:2] = ["Van", "Car"]
    torch.save(weights, root / "moved.pth")
    (root / "file").write_text("a file")
    (root / "empty.py").write_text("x = dict(a=1)\n")
    model = f"from detectron2.config import LazyConfig\nmodel = LazyConfig.load({str(STUDENT)!r}).model\n"
    (root / "small.py").write_text(model)
    (root / "invalid.py").write_text(f"{model}model.num_queries = 0\n")
    return root


def snapshot(root):
    return {path.relative_to(root): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def start(program, arguments, monkeypatch):
    """Run a program in this process and return its exit status."""
    try:
        if program is train_net:
            return run(train_net.main, train_net.parse_args(arguments))
        if program in (predict, visualize):
            return run(program.main, program.parse_args(arguments))
        if program is check:
            return check.main(arguments)
        monkeypatch.setattr(sys, "argv", ["make_street_scenes.py", *arguments])
        return make_street_scenes.main() or 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return error.code


@pytest.mark.parametrize(("title", "program", "arguments", "message"), CASES, ids=[case[0] for case in CASES])
def test_a_wrong_input_ends_in_a_sentence(root, monkeypatch, capfd, title, program, arguments, message):
    monkeypatch.chdir(root)
    paths = dict(ROOT=root, NEW=root / "new", FILE=root / "file", EMPTY=root / "empty.py", SMALL=root / "small.py")
    paths |= dict(
        MOVED=root / "moved.pth", INVALID=root / "invalid.py", NAN=root / "nan.pth", STUDENT=STUDENT, TEACHER=TEACHER
    )
    with socket.create_server(("", 0)) as server:
        paths["PORT"] = server.getsockname()[1]
        for word, path in paths.items():
            arguments = [re.sub(rf"\b{word}\b", str(path), text) for text in arguments]
        if program is train_net:
            names = f"kitti:{root}:train:Car+Van+Truck+Pedestrian+Cyclist"
            data = [f"dataloader.{loader}.dataset.names={names}" for loader in ("train", "test")]
            defaults = [*data, f"train.output_dir={root}/out", "train.max_iter=1"]
            # overrides follow the flags and their values, and the later of two counts
            last = max(i for i, text in enumerate(arguments) if text.startswith("--") or arguments[i - 1] in WITH_VALUE)
            arguments = [*arguments[: last + 1], *defaults, *arguments[last + 1 :]]
        before = snapshot(root)
        status = start(program, arguments, monkeypatch)
    printed = capfd.readouterr()
    assert status not in (0, None)
    assert "Traceback" not in printed.out + printed.err
    last = printed.err.strip().splitlines()[-1]
    assert re.search(r"\berror: ", last), last
    assert re.search(message, last), last
    assert snapshot(root) == before


def test_the_table_has_at_least_200_different_inputs():
    assert len({case[0] for case in CASES}) == len(CASES) >= 200


class Attack:
    """Its pickle creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_does_not_run_code(tmp_path):
    path, created = tmp_path / "attack.pkl", tmp_path / "created"
    path.write_bytes(pickle.dumps({"model": {"weight": np.zeros((1, 1))}, "__author__": Attack(created)}))
    with pytest.raises(UserError, match=r"attack\.pkl is not safe to load, since it contains io\.open|builtins\.open"):
        load_weights(torch.nn.Linear(1, 1), str(path))
    assert not created.exists()
    pickle.loads(path.read_bytes())  # the attack itself works
    assert created.exists()


def test_valid_overrides_are_accepted(root):
    """The table would also pass if everything was refused."""
    load_config(str(DISTILLED), ["model.num_queries=5", "train.clip_grad=null", "train.checkpointer.max_to_keep=null"])
