"""The demo's student: the teacher with a narrower backbone that has a sixth of the parameters.

The transformer starts from the teacher's weights (the "inheriting strategy" of FGD, arXiv:2111.11837, and MGD,
arXiv:2205.01529); backbone and neck are initialized at random.
"""

from pathlib import Path

from .dino_r18_small_street import dataloader, lr_multiplier, model, optimizer, train

model.backbone.width = 8
model.neck.in_channels = [16, 32, 64]

train.init_checkpoint = str(Path(__file__).parents[2] / "demo" / "dino_r18_small_street.pth")
optimizer.params.backbone_lr_factor = 4.0
train.output_dir = "./output/dino_r18_tiny_street"
train.max_iter = 400
train.eval_period = 200
train.checkpointer.period = 400
