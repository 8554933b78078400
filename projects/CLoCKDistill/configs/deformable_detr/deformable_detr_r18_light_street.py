"""A student of the demo, as in `dino_r18_light_street`."""

from .deformable_detr_r18_tiny_street import dataloader, lr_multiplier, model, optimizer, train

model.neck.update(in_features=["res4", "res5"], in_channels=[32, 64])
model.encoder.num_levels = 3

train.output_dir = "./output/deformable_detr_r18_light_street"
