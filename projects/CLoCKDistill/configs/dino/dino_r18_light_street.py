"""A student of the demo with a third of the teacher's multiply-adds: the tiny one, with each level one octave coarser.

The finest level has three quarters of the tokens. With as many levels as the teacher, the transformer still starts from
all of its weights.
"""

from .dino_r18_tiny_street import dataloader, lr_multiplier, model, optimizer, train

model.neck.update(in_features=["res4", "res5"], in_channels=[32, 64])
model.encoder.num_levels = 3

train.output_dir = "./output/dino_r18_light_street"
