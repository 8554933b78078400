"""The demo's student: 0.76 M parameters."""

from .dino_r18w20_street import dataloader, lr_multiplier, model, optimizer, train

model.backbone.width = 8
model.neck.in_channels = [16, 32, 64]
model.encoder.update(num_layers=1, num_points=2, feedforward_dim=128)
model.decoder.num_layers = 2

optimizer.lr = 8e-4
train.output_dir = "./output/dino_r18w8_street"
train.max_iter = 700
train.eval_period = 350
train.checkpointer.period = 700
