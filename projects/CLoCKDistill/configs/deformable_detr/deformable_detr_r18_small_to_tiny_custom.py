from pathlib import Path

from ..dino.dino_r18_small_to_tiny_street import distillation
from .deformable_detr_r18_tiny_custom import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).with_name("deformable_detr_r18_small_custom.py"))
distillation.teacher.checkpoint = "./output/deformable_detr_r18_small_custom/model_final.pth"
distillation.embedding = "calibrated"

train.output_dir = "./output/deformable_detr_r18_small_to_tiny_custom"
