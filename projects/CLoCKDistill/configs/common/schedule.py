from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

# 80 % of KITTI's 7,481 labeled images: the default split. Change it if your ImageSets/train.txt has another length; the
# split of Chen et al. (arXiv:1608.07711), which many papers use, has 3,712.
KITTI_TRAIN = 5985
COCO_TRAIN = 118287


def iterations(epochs, images, batch_size):
    """Number of iterations in `epochs` epochs."""
    return round(epochs * images / batch_size)


def training_length(epochs, eval_epochs, images, batch_size):
    """Keys of `train` for a training of `epochs` epochs, evaluated and saved every `eval_epochs`."""
    period = iterations(eval_epochs, images, batch_size)
    return dict(max_iter=iterations(epochs, images, batch_size), eval_period=period, checkpointer=dict(period=period))


def step_schedule(epochs, drop):
    """Divide the learning rate by 10 after `drop` of `epochs` epochs.

    Milestones are fractions of the training, so they scale with train.max_iter.
    """
    return L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[drop], num_updates=epochs)
