"""The demo's distillation, in 7 epochs from scratch: the memory losses weigh more than in a long training."""

from pathlib import Path

from ..common.distillation import distillation
from .dino_r18w8_street import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).with_name("dino_r18w20_street.py"))
distillation.teacher.checkpoint = str(Path(__file__).parents[2] / "demo" / "teacher.pth")
distillation.losses[0].update(alpha=1e-3, beta=2e-3)
distillation.period = 100

train.output_dir = "./output/dino_r18w20_to_r18w8_street"
