from pathlib import Path

from ..common.distillation import distillation
from .deformable_detr_r18_kitti_50ep import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).parents[1] / "dino" / "dino_r50_kitti_12ep.py")
distillation.teacher.checkpoint = "./output/dino_r50_kitti_12ep/model_final.pth"

train.output_dir = "./output/dino_r50_to_deformable_detr_r18_kitti_50ep"
