from pathlib import Path

from ..common.distillation import distillation
from .deformable_detr_r18_light_coco_50ep import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).with_name("deformable_detr_r50_coco_50ep.py"))
distillation.teacher.checkpoint = "./output/deformable_detr_r50_coco_50ep/model_final.pth"
distillation.embedding = "calibrated"
distillation.level_pairing = "order"

train.output_dir = "./output/deformable_detr_r50_to_r18_light_coco_50ep"
