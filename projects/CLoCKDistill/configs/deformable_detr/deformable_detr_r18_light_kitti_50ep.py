from .deformable_detr_r18_kitti_50ep import dataloader, lr_multiplier, optimizer, train
from .deformable_detr_r18_light_coco_50ep import model

model.num_classes = 8

train.output_dir = "./output/deformable_detr_r18_light_kitti_50ep"
