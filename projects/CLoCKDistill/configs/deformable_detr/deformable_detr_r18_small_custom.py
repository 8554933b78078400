"""A small two-stage teacher for your own data, initialized from the demo's teacher."""

from pathlib import Path

from ..dino.dino_r18_small_custom import dataloader, lr_multiplier, optimizer, train
from .deformable_detr_r18_small_street import model

model.update(num_classes=1, num_queries=100)

train.init_checkpoint = str(Path(__file__).parents[2] / "demo" / "deformable_detr_r18_small_street.pth")
train.output_dir = "./output/deformable_detr_r18_small_custom"
