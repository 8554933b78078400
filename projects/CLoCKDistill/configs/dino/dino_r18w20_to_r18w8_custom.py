from pathlib import Path

from ..common.distillation import distillation
from .dino_r18w8_custom import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).with_name("dino_r18w20_custom.py"))
distillation.teacher.checkpoint = "./output/dino_r18w20_custom/model_final.pth"
distillation.losses[0].update(alpha=0.1, beta=0.1)
distillation.period = 100

train.output_dir = "./output/dino_r18w20_to_r18w8_custom"
