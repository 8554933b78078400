from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

# 80 % of KITTI's 7,481 labelled images, the split of a download as it is. With an ImageSets/train.txt of other length
# set this number: the split that many papers use (Chen et al., arXiv:1608.07711) has 3,712.
KITTI_TRAIN = 5985
COCO_TRAIN = 118287


def iterations(epochs, images, batch_size):
    """Training iterations that show every image `epochs` times."""
    return round(epochs * images / batch_size)


def step_schedule(epochs, drop):
    """Learning rate that falls to a tenth after `drop` of all epochs.

    It is relative to the whole training: with another train.max_iter it falls at the same fraction.
    """
    return L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[drop], num_updates=epochs)
