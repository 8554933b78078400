"""The demo's student: 0.7 M parameters."""

from .dino_r18w20_street import dataloader, lr_multiplier, model, optimizer, train

model.backbone.width = 8
model.neck.in_channels = [16, 32, 64]
model.encoder.update(num_layers=1, num_points=2, feedforward_dim=128)
model.decoder.num_layers = 2

train.output_dir = "./output/dino_r18w8_street"
train.max_iter = 1000
train.eval_period = 250
train.checkpointer.period = 1000
