from .dino_r18_light_street import dataloader, lr_multiplier, model, optimizer, train
from .dino_r18_small_to_tiny_street import distillation

distillation.level_pairing = "order"
train.output_dir = "./output/dino_r18_small_to_light_street"
