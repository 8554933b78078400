"""The student of the demo, as in `dino_r18_tiny_street`, but trained for longer: DAB-DETR learns more slowly."""

from pathlib import Path

from ..dino.dino_r18_tiny_street import dataloader, lr_multiplier, optimizer, train
from .dab_detr_r18_small_street import model

model.backbone.width = 8
model.neck.in_channels = [16]

train.init_checkpoint = str(Path(__file__).parents[2] / "demo" / "dab_detr_r18_small_street.pth")
train.output_dir = "./output/dab_detr_r18_tiny_street"
train.max_iter = 1000
train.eval_period = 500
