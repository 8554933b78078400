from ..common.schedule import KITTI_TRAIN, iterations, step_schedule
from .dino_r50_kitti_12ep import dataloader, model, optimizer, train

train.output_dir = "./output/dino_r50_kitti_24ep"
train.max_iter = iterations(24, KITTI_TRAIN, dataloader.train.total_batch_size)
lr_multiplier = step_schedule(24, drop=20)
