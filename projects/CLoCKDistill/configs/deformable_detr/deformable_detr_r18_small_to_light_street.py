from .deformable_detr_r18_light_street import dataloader, lr_multiplier, model, optimizer, train
from .deformable_detr_r18_small_to_tiny_street import distillation

distillation.level_pairing = "order"
train.output_dir = "./output/deformable_detr_r18_small_to_light_street"
