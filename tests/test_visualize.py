"""visualize.py: its pictures, and the images that it selects."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import make_street_scenes
import visualize
from clockdistill.distillation.memory import location_and_scale_weights
from clockdistill.engine import run
from clockdistill.errors import UserError
from clockdistill.evaluation.pictures import draw_masks
from clockdistill.evaluation.pictures.sheet import TITLE_HEIGHT
from clockdistill.modeling import Target, Targets
from helpers import models

CONFIG = models.CONFIGS / "dino" / "dino_r18_small_street.py"
CHECKPOINT = models.CONFIGS.parent / "demo" / "dino_r18_small_street.pth"


def test_pictures_of_the_worst_image(tmp_path, monkeypatch):
    make_street_scenes.make(tmp_path / "street_scenes", train=1, val=2, seed=0, size=(320, 96), jobs=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    output = tmp_path / "pictures"
    arguments = ["--config-file", str(CONFIG), "--output", str(output), "--worst", "1"]
    assert run(visualize.main, visualize.parse_args([*arguments, "--opts", f"train.init_checkpoint={CHECKPOINT}"])) == 0
    names = [path.name for path in output.iterdir()]
    (image,) = [name.removeprefix("masks_") for name in names if name.startswith("masks_")]
    assert sorted(names) == [f"attention_{image}", f"comparison_{image}", f"masks_{image}", "precision_recall.png"]
    assert all(cv2.imread(str(path)).std() > 10 for path in output.iterdir())


def test_masks_equal_those_of_the_memory_loss():
    detector = models.tiny("dino").eval()
    inputs = dict(image=torch.rand(3, 48, 80) * 255)

    class PaddingDetector:
        device, encode = detector.device, staticmethod(detector.encode)

        def preprocess(self, batch):
            return detector.preprocess([*batch, dict(image=torch.zeros(3, 96, 128))])

    model = SimpleNamespace(detector=PaddingDetector(), inputs=lambda record: record)
    target = Target(torch.tensor([0, 1]), torch.tensor([[0.3, 0.5, 0.3, 0.4], [0.8, 0.4, 0.2, 0.2]]))
    objects, background = visualize.memory_masks(model, inputs, target)
    with torch.no_grad():
        memory = detector.encode(model.detector.preprocess([inputs]))
    assert memory.padding_mask[0].any()
    expected = location_and_scale_weights(memory, Targets([target]))
    for masks, weights in zip((objects, background), expected, strict=True):
        drawn = np.concatenate([mask.ravel() for mask in masks])
        assert drawn == pytest.approx(weights[0][~memory.padding_mask[0]].numpy())

    picture = draw_masks(np.zeros((48, 80, 3), np.uint8), objects, background, [])
    scale = 640 // 80
    height, width = objects[0].shape
    for row, column in np.ndindex(height, width):
        y, x = (TITLE_HEIGHT + scale * 48 * (row + 0.5) / height), scale * 80 * (column + 0.5) / width
        is_orange = picture[int(y), int(x), 0] > 100
        assert is_orange == (objects[0][row, column] > 0)


def test_images_are_selected_by_name():
    records = [dict(file_name=f"folder/{number:06d}.png") for number in range(5)]
    assert visualize.select_images(records, ["000003", "000001"]) == [records[3], records[1]]
    with pytest.raises(UserError, match=r"--image 7 is not in the test set: use names such as 000000, 000001, 000002"):
        visualize.select_images(records, ["7"])
