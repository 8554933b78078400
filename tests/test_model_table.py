import pytest

import model_table
from clockdistill.engine import load_config
from helpers.models import CONFIGS


def dino(name):
    return load_config(str(CONFIGS / "dino" / f"{name}.py"))


def test_configs_of_one_model_share_a_row():
    names = ["dino_r18_small_street", "dino_r18_small_to_tiny_street", "dino_r18_tiny_street"]
    teacher, student = model_table.rows({name: dino(name) for name in names})
    assert teacher["names"] == names[:1]
    assert student["names"] == names[1:]
    assert teacher["size"] == student["size"] == (96, 320)
    assert student["parameters"] == pytest.approx(1.52e6, rel=1e-2)
    assert student["flops"] < teacher["flops"]
    lines = [line.strip("| ").split("|") for line in model_table.table([teacher, student]).splitlines()]
    assert [cell.strip() for cell in lines[0]] == ["configs", "image", "parameters (M)", "GFLOPs"]
    assert [cell.strip() for cell in lines[3][:3]] == [f"`{names[1]}`, `{names[2]}`", "96x320", "1.52"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("dino_r50_coco_12ep", (800, 1333)),
        ("dino_r50_kitti_12ep", (375, 1242)),
        ("dino_r18_tiny_kitti_sample", (192, 636)),
    ],
)
def test_image_size_is_that_of_evaluation(name, size):
    assert model_table.image_size(dino(name).dataloader) == size


def test_image_size_of_other_data_sets_is_unknown():
    cfg = dino("dino_r50_coco_12ep")
    cfg.dataloader.test.dataset.names = "mine"
    assert model_table.image_size(cfg.dataloader) is None
    row = dict(names=["mine"], size=None, parameters=12_340_000, flops=None)
    assert model_table.table([row]).splitlines()[-1].split() == ["|", "`mine`", "|", "|", "12.34", "|", "|"]
