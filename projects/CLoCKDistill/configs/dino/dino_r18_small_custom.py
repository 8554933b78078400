"""A small teacher for your own data, initialized from the demo's teacher."""

from pathlib import Path

from ..common.data.custom import dataloader
from .dino_r18_small_street import lr_multiplier, model, optimizer, train

model.update(num_classes=1, num_queries=100)

train.init_checkpoint = str(Path(__file__).parents[2] / "demo" / "dino_r18_small_street.pth")
train.output_dir = "./output/dino_r18_small_custom"
train.max_iter = 800
train.eval_period = 400
train.checkpointer.period = 800
