"""A small transformer too: half the layers and feed-forward width, 300 queries, and no level of the finest features."""

from .dino_r18_coco_12ep import dataloader, lr_multiplier, model, optimizer, train

model.neck.update(in_features=["res4", "res5"], in_channels=[256, 512])
model.encoder.update(num_layers=3, num_levels=3, feedforward_dim=1024)
model.decoder.num_layers = 3
model.num_queries = 300

train.output_dir = "./output/dino_r18_light_coco_12ep"
