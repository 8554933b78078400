from ..common.data.kitti import dataloader
from ..common.schedule import KITTI_TRAIN, training_length
from .dino_r50_coco_12ep import lr_multiplier, model, optimizer, train

model.num_classes = 8

train.output_dir = "./output/dino_r50_kitti_12ep"
train.merge_with(training_length(12, 1, KITTI_TRAIN, dataloader.train.total_batch_size))
