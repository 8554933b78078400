import pytest

import model_table
from helpers.models import CONFIGS


def test_configs_of_one_model_share_a_row():
    names = ["dino_r18_small_street", "dino_r18_small_to_tiny_street", "dino_r18_tiny_street"]
    teacher, student = model_table.rows([CONFIGS / "dino" / f"{name}.py" for name in names])
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
def test_images_are_as_large_as_evaluation_shows_them(name, size):
    dataloader = model_table.load_config(str(CONFIGS / "dino" / f"{name}.py")).dataloader
    assert model_table.image_size(dataloader) == size


def test_images_of_ones_own_are_of_no_known_size():
    cfg = model_table.load_config(str(CONFIGS / "dino" / "dino_r50_coco_12ep.py"))
    cfg.dataloader.test.dataset.names = "mine"
    assert model_table.image_size(cfg.dataloader) is None
    row = dict(names=["mine"], size=None, parameters=12_340_000, flops=None)
    assert model_table.table([row]).splitlines()[-1].split() == ["|", "`mine`", "|", "|", "12.34", "|", "|"]
