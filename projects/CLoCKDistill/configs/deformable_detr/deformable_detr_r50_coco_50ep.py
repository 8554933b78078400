from ..common.data.coco import dataloader
from ..common.models.deformable_detr import model
from ..common.optim import optimizer
from ..common.schedule import COCO_TRAIN, step_schedule, training_length
from ..common.train import train

# batch size and learning rates of the paper (arXiv:2010.04159, Sec. 5)
dataloader.train.total_batch_size = 32
optimizer.lr = 2e-4
optimizer.params.point_lr_factor = 0.1

train.init_checkpoint = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
train.output_dir = "./output/deformable_detr_r50_coco_50ep"
train.merge_with(training_length(50, 5, COCO_TRAIN, dataloader.train.total_batch_size))
lr_multiplier = step_schedule(50, drop=40)
