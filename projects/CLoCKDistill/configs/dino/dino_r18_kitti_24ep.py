from .dino_r50_kitti_24ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 18
model.neck.in_channels = [128, 256, 512]

train.init_checkpoint = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
train.output_dir = "./output/dino_r18_kitti_24ep"
