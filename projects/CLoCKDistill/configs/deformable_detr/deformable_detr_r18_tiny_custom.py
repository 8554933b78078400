"""A student for your own data, as in `dino_r18_tiny_custom`."""

from ..dino.dino_r18_tiny_custom import dataloader, lr_multiplier, optimizer, train
from .deformable_detr_r18_small_custom import model

model.backbone.width = 8
model.neck.in_channels = [16, 32, 64]

train.init_checkpoint = "./output/deformable_detr_r18_small_custom/model_final.pth"
train.output_dir = "./output/deformable_detr_r18_tiny_custom"
