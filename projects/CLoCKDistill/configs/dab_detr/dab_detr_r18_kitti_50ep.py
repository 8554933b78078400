from .dab_detr_r50_kitti_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 18
model.neck.in_channels = [512]

train.init_checkpoint = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
train.output_dir = "./output/dab_detr_r18_kitti_50ep"
