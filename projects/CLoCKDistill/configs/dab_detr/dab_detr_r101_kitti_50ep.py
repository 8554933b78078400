from .dab_detr_r50_kitti_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 101

train.init_checkpoint = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
train.output_dir = "./output/dab_detr_r101_kitti_50ep"
