"""The teacher's transformer, from which it starts, behind a backbone of a sixth of the parameters."""

from pathlib import Path

from .dab_detr_r18_small_street import dataloader, lr_multiplier, model, optimizer, train

model.backbone.width = 8
model.neck.in_channels = [32]

train.init_checkpoint = str(Path(__file__).parents[2] / "demo" / "dab_detr_r18_small_street.pth")
optimizer.params.backbone_lr_factor = 4.0
train.output_dir = "./output/dab_detr_r18_tiny_street"
train.max_iter = 400
train.eval_period = 200
train.checkpointer.period = 400
