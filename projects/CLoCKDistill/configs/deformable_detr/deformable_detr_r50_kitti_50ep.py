from ..common.data.kitti import dataloader
from ..common.schedule import KITTI_TRAIN, training_length
from .deformable_detr_r50_coco_50ep import lr_multiplier, model, optimizer, train

model.num_classes = 8
dataloader.train.total_batch_size = 32

train.output_dir = "./output/deformable_detr_r50_kitti_50ep"
train.merge_with(training_length(50, 5, KITTI_TRAIN, dataloader.train.total_batch_size))
