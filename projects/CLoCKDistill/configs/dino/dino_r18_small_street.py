"""The demo's teacher: 2.5 M parameters, trained from scratch on street scenes."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from ..common.data.street import dataloader
from ..common.models.dino import model
from ..common.optim import optimizer
from ..common.train import train

model.backbone.update(depth=18, norm="BN", freeze_at=0, width=20)
model.neck.in_channels = [40, 80, 160]
model.encoder.update(num_layers=3, embed_dim=128, num_levels=3, feedforward_dim=320)
model.decoder.num_layers = 3
model.denoising.num_queries = 20
model.update(num_classes=5, num_queries=60, detections_per_image=100)

optimizer.lr = 4e-4
optimizer.fused = True
optimizer.params.backbone_lr_factor = 1.0
train.output_dir = "./output/dino_r18_small_street"
train.max_iter = 4000
train.eval_period = 1000
train.checkpointer.period = 1000
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01), warmup_factor=0.1, warmup_length=0.02
)
