from .dino_r18_kitti_12ep import dataloader, lr_multiplier, optimizer, train
from .dino_r18_light_coco_12ep import model

model.num_classes = 8

train.output_dir = "./output/dino_r18_light_kitti_12ep"
