from pathlib import Path

from ..common.distillation import distillation
from .dino_r18_light_kitti_12ep import dataloader, lr_multiplier, model, optimizer, train

distillation.teacher.config = str(Path(__file__).with_name("dino_r50_kitti_12ep.py"))
distillation.teacher.checkpoint = "./output/dino_r50_kitti_12ep/model_final.pth"
# proposals of small objects come from the teacher's stride 8, and from the student's stride 16
distillation.level_pairing = "order"

train.output_dir = "./output/dino_r50_to_r18_light_kitti_12ep"
