from pathlib import Path

from .dino_r18_small_to_tiny_street import distillation
from .dino_r18_tiny_custom import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).with_name("dino_r18_small_custom.py"))
distillation.teacher.checkpoint = "./output/dino_r18_small_custom/model_final.pth"

train.output_dir = "./output/dino_r18_small_to_tiny_custom"
