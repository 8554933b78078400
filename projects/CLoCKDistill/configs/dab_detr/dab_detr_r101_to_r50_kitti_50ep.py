from pathlib import Path

from ..common.distillation import distillation
from .dab_detr_r50_kitti_50ep import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).with_name("dab_detr_r101_kitti_50ep.py"))
distillation.teacher.checkpoint = "./output/dab_detr_r101_kitti_50ep/model_final.pth"
distillation.embedding = "calibrated"

train.output_dir = "./output/dab_detr_r101_to_r50_kitti_50ep"
