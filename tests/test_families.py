"""A new family is found by its file in configs/common/models."""

import importlib.util
import shutil

import families
from helpers.models import CONFIGS


def test_a_new_family_is_one_file_and_its_configs(tmp_path):
    configs = tmp_path / CONFIGS.relative_to(CONFIGS.parents[2])
    shutil.copytree(CONFIGS, configs)
    (configs / "common/models/new.py").write_text(
        "from .dino import model\nvariants = dict(wide=dict(encoder=dict(feedforward_dim=4096)))\n"
    )
    (configs / "new").mkdir()
    (configs / "new/new_r50_coco_12ep.py").write_text(
        "from ..common.models.new import model\n"
        "from ..dino.dino_r50_coco_12ep import dataloader, lr_multiplier, optimizer, train\n"
    )
    (tmp_path / "tools").mkdir()
    script = shutil.copy(families.__file__, tmp_path / "tools")
    spec = importlib.util.spec_from_file_location("families_copy", script)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)

    assert copy.VARIANTS == {**families.VARIANTS, "new": {}, "new.wide": {"encoder": {"feedforward_dim": 4096}}}
    assert copy.model_config("new") == families.model_config("dino")
    model = copy.training_config("new.wide").model
    assert model == copy.model_config("new.wide")
    assert model.encoder == {**families.model_config("dino").encoder, "feedforward_dim": 4096}
