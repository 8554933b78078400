"""DINO R-50 with detrex's position encoding: what detrex's checkpoints (dino_r50_4scale_*.pth) need."""

from .dino_r50_coco_12ep import dataloader, lr_multiplier, model, optimizer, train

model.position_embedding.update(temperature=10000, offset=-0.5)
train.output_dir = "./output/dino_r50_coco_12ep_detrex"
