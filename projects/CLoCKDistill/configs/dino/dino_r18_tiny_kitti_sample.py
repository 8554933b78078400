"""Overfit a few KITTI frames with a small detector: a sanity check of data and training, minutes on a CPU.

There is no augmentation and all frames form one batch, so that training and evaluation see the same batch statistics.
"""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from ..common.data.kitti import dataloader
from .dino_r18_small_street import lr_multiplier, model, optimizer, train

model.backbone.width = 8
model.neck.in_channels = [16, 32, 64]
model.encoder.update(num_layers=1, feedforward_dim=128)
model.decoder.num_layers = 2
model.num_classes = 8

_resize = L(T.ResizeShortestEdge)(short_edge_length=192, max_size=1333)
dataloader.train.mapper.augmentations = [_resize]
dataloader.test.mapper.augmentations = [_resize]
dataloader.train.total_batch_size = 3
dataloader.train.num_workers = 1
dataloader.test.num_workers = 0

train.output_dir = "./output/dino_r18_tiny_kitti_sample"
train.max_iter = 600
train.eval_period = 300
train.checkpointer.period = 600
