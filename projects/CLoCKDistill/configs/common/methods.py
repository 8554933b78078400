"""Other distillation methods to compare with. Give a distillation config one of them as `distillation.losses`.

The constants of FGD and MGD are those of their authors' RetinaNet configs, except FGD's `attention_weight`: it is the
default in the authors' loss class, twice the value in these configs. The authors give none for transformers. FitNets
has no constant: its weight is that of MGD, which is a sum of squares over the same maps. The constants of KD-DETR are
those of the code that `kd_detr.py` names, except the temperature. The constants of DETRDistill are those of its
authors' code for Deformable DETR.
"""

from detectron2.config import LazyCall as L

from clockdistill.distillation import (
    FGDLoss,
    FitNetsLoss,
    GeneralPointsLoss,
    HungarianLogitLoss,
    MGDLoss,
    QueryPriorLoss,
    SpecificPointsLoss,
    TargetAwareFeatureLoss,
)

# arXiv:1412.6550
fitnets = dict(fitnets=L(FitNetsLoss)(weight=2e-5, feature="backbone"))

# arXiv:2111.11837; for two-stage detectors 5e-5, 2.5e-5, 5e-5 and 5e-7
fgd = dict(
    fgd=L(FGDLoss)(
        object_weight=1e-3,
        background_weight=5e-4,
        attention_weight=1e-3,
        global_weight=5e-6,
        temperature=0.5,
        feature="backbone",
    )
)

# arXiv:2205.01529; for two-stage detectors 5e-7 and 0.45
mgd = dict(mgd=L(MGDLoss)(weight=2e-5, mask_ratio=0.65, feature="backbone"))

# arXiv:2211.08071
kd_detr = dict(
    general=L(GeneralPointsLoss)(num_points=300, class_weight=1.0, l1_weight=5.0, giou_weight=2.0, temperature=1.0),
    specific=L(SpecificPointsLoss)(class_weight=1.0, l1_weight=5.0, giou_weight=2.0, temperature=1.0),
)

# arXiv:2211.10156
detrdistill = dict(
    hungarian=L(HungarianLogitLoss)(class_weight=1.0, l1_weight=5.0, giou_weight=2.0),
    feature=L(TargetAwareFeatureLoss)(weight=1.0, num_queries=100, feature="backbone"),
    prior=L(QueryPriorLoss)(weight=1.0),
)
