"""A small transformer too: half the layers and feed-forward width, and no level of the finest features."""

from .deformable_detr_r18_coco_50ep import dataloader, lr_multiplier, model, optimizer, train

model.neck.update(in_features=["res4", "res5"], in_channels=[256, 512])
model.encoder.update(num_layers=3, num_levels=3, feedforward_dim=512)
model.decoder.num_layers = 3

train.output_dir = "./output/deformable_detr_r18_light_coco_50ep"
