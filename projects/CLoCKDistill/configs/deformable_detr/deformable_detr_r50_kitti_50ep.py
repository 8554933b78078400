from ..common.data.kitti import dataloader
from ..common.models.deformable_detr import model
from ..common.optim import optimizer
from ..common.schedule import KITTI_TRAIN, iterations, step_schedule
from ..common.train import train

model.num_classes = 8

# the paper's batch and learning rates (arXiv:2010.04159, Sec. 5)
dataloader.train.total_batch_size = 32
optimizer.lr = 2e-4
optimizer.params.point_lr_factor = 0.1

train.init_checkpoint = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
train.output_dir = "./output/deformable_detr_r50_kitti_50ep"
train.max_iter = iterations(50, KITTI_TRAIN, dataloader.train.total_batch_size)
train.eval_period = iterations(5, KITTI_TRAIN, dataloader.train.total_batch_size)
train.checkpointer.period = train.eval_period
lr_multiplier = step_schedule(50, drop=40)
