import re
from pathlib import Path

import pytest
import torch

from clockdistill.errors import UserError
from helpers.distillation import make_hook, save_teacher
from helpers.models import tiny


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(checkpoint="absent.pth"), "absent.pth does not exist"),
        (dict(checkpoint=""), "no teacher checkpoint is given"),
        (dict(config=""), "no teacher config is given"),
        (dict(config="absent.py"), "config file absent.py does not exist"),
    ],
)
def test_missing_teacher_files(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        make_hook(tiny(), save_teacher(tmp_path) | change)


def test_a_teacher_config_needs_a_model(tmp_path):
    config = tmp_path / "empty.yaml"
    config.write_text("train: {}")
    with pytest.raises(UserError, match=r"empty\.yaml has no `model`"):
        make_hook(tiny(), save_teacher(tmp_path) | dict(config=str(config)))


def test_the_teacher_gets_the_students_number_of_classes(tmp_path):
    """A config's model.num_classes may have been overridden when the teacher was trained."""
    teacher = save_teacher(tmp_path)
    config = Path(teacher["config"])
    config.write_text(re.sub(r"(?m)^( *)num_classes: 3$", r"\1num_classes: 7", config.read_text()))
    assert "num_classes: 7" in config.read_text()
    assert make_hook(tiny(), teacher).teacher.num_classes == 3


def test_a_teacher_with_other_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match="4 classes and the student 3"):
        make_hook(tiny(), save_teacher(tmp_path, num_classes=4))


def test_teacher_checkpoint_that_leaves_a_parameter_unset(tmp_path):
    teacher = save_teacher(tmp_path)
    weights = torch.load(teacher["checkpoint"], weights_only=True)["model"]
    del weights["encoder.level_embed"]
    torch.save({"model": weights}, teacher["checkpoint"])
    with pytest.raises(UserError, match=r"teacher\.pth does not set 1 .* encoder\.level_embed"):
        make_hook(tiny(), teacher)
