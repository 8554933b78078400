from detectron2.config import LazyCall as L

from clockdistill.modeling import HungarianMatcher, SetCriterion


def set_criterion(class_weight):
    """The detection losses. All families share their constants, but for the weight of the classification."""
    # as in DETR (arXiv:2005.12872, A.4) and of the focal loss (arXiv:1708.02002), for matching and training alike
    shared = dict(l1_weight=5.0, giou_weight=2.0, alpha=0.25, gamma=2.0)
    return L(SetCriterion)(
        matcher=L(HungarianMatcher)(class_weight=2.0, **shared),
        class_weight=class_weight,
        **shared,
        # more than this fraction of a box in an ignored region: no loss for the region's class
        ignore_overlap=0.5,
    )
