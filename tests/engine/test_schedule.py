from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.solver import LRMultiplier

SCHEDULE = Path(__file__).resolve().parents[2] / "projects/CLoCKDistill/configs/common/schedule.py"


def test_kitti_in_12_epochs():
    iterations, images = LazyConfig.load(str(SCHEDULE), ("iterations", "KITTI_TRAIN"))
    assert images == round(0.8 * 7481)
    assert iterations(12, images, 16) == 4489  # 374 per epoch


def test_evaluations_and_checkpoints_come_every_few_epochs():
    training_length = LazyConfig.load(str(SCHEDULE), "training_length")
    expected = dict(max_iter=500, eval_period=50, checkpointer=dict(period=50))
    assert training_length(50, 5, images=160, batch_size=16) == expected


@pytest.mark.parametrize("max_iter", [12, 120])
def test_learning_rate_drops_after_the_eleventh_epoch(max_iter):
    multiplier = instantiate(LazyConfig.load(str(SCHEDULE), "step_schedule")(epochs=12, drop=11))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = LRMultiplier(optimizer, multiplier, max_iter)
    rates = []
    for _ in range(max_iter):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    epoch = max_iter // 12
    assert rates == pytest.approx([2.0] * 11 * epoch + [0.2] * epoch)
