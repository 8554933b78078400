"""The demo's two-stage Deformable DETR teacher; what it shares with the DINO teacher starts from those weights."""

from pathlib import Path

from ..common.models.deformable_detr import model
from ..dino.dino_r18_small_street import dataloader, lr_multiplier, optimizer, train

model.backbone.update(depth=18, norm="BN", freeze_at=0, width=20)
model.neck.in_channels = [40, 80, 160]
model.encoder.update(num_layers=3, embed_dim=128, num_levels=3, feedforward_dim=320)
model.decoder.update(num_layers=3, refine=True)
model.update(num_classes=5, num_queries=60, two_stage=True)

train.init_checkpoint = str(Path(__file__).parents[2] / "demo" / "dino_r18_small_street.pth")
train.output_dir = "./output/deformable_detr_r18_small_street"
train.max_iter = 2000
