"""The demo's distillation. It lasts only four epochs, so the memory loss has a far larger weight than by default."""

from pathlib import Path

from ..common.distillation import distillation
from .dino_r18_tiny_street import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).with_name("dino_r18_small_street.py"))
distillation.teacher.checkpoint = str(Path(__file__).parents[2] / "demo" / "dino_r18_small_street.pth")
distillation.losses.memory.update(alpha=0.1, beta=0.1)
distillation.gradient_share_period = 100

train.output_dir = "./output/dino_r18_small_to_tiny_street"
