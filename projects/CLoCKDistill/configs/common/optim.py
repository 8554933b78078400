import torch
from detectron2.config import LazyCall as L

from clockdistill.engine import get_detr_optimizer_params

# DINO's (arXiv:2203.03605, App. D) and DAB-DETR's: the same as Deformable DETR's, but for the sampling offsets and
# reference points, which learn like the rest
optimizer = L(torch.optim.AdamW)(
    params=L(get_detr_optimizer_params)(base_lr="${..lr}", backbone_lr_factor=0.1),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
)
