from ..common.data.coco import dataloader
from ..common.models.dino import model
from ..common.optim import optimizer
from ..common.schedule import COCO_TRAIN, step_schedule, training_length
from ..common.train import train

train.init_checkpoint = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
train.output_dir = "./output/dino_r50_coco_12ep"
train.merge_with(training_length(12, 1, COCO_TRAIN, dataloader.train.total_batch_size))
lr_multiplier = step_schedule(12, drop=11)
