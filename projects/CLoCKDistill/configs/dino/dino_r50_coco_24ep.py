from ..common.schedule import COCO_TRAIN, iterations, step_schedule
from .dino_r50_coco_12ep import dataloader, model, optimizer, train

train.output_dir = "./output/dino_r50_coco_24ep"
train.max_iter = iterations(24, COCO_TRAIN, dataloader.train.total_batch_size)
lr_multiplier = step_schedule(24, drop=20)
