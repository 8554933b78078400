"""DINO R-50 with a fifth scale, of stride 4 (arXiv:2203.03605, Tab. 1)."""

from .dino_r50_coco_12ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.update(in_features=["res2", "res3", "res4", "res5"], in_channels=[256, 512, 1024, 2048])
model.encoder.num_levels = 5
train.output_dir = "./output/dino_r50_5scale_coco_12ep"
