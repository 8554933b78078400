"""Distillation methods by name: losses that replace those of a distillation config, or overrides of that config.

The other methods' weights are multiplied by factors with which the gradient norms of their terms add up to about three
times that of the detection loss, for DINO's street student after 20 iterations with seed 100 and a teacher of 25.3 AP.
`experiments.py tune` starts from there. The ratios of `balance` are near those that CLoCKDistill's weights have there.
"""

from ...projects.CLoCKDistill.configs.common.methods import detrdistill, fgd, fitnets, kd_detr, mgd


def scaled(losses, factor):
    return {
        name: {key: value * factor if key.endswith("weight") else value for key, value in loss.items()}
        for name, loss in losses.items()
    }


methods = dict(
    clockdistill=[],
    balance=["distillation.balance={memory: 6.0, logits: 1.0}"],
    fitnets=scaled(fitnets, 75),
    fgd=scaled(fgd, 6),
    mgd=scaled(mgd, 300),
    kd_detr=scaled(kd_detr, 5),
    detrdistill=scaled(detrdistill, 3),
)

# variants of CLoCKDistill: with FitNets' loss beside its own, and without a part
with_hint = [
    "+distillation.losses.hint={_target_: clockdistill.distillation.FitNetsLoss, weight: 1.5e-3, feature: backbone}"
]
no_masks = [  # ablation.py says where the weight is from
    "distillation.losses.memory=null",
    "+distillation.losses.plain={_target_: clockdistill.distillation.PlainFeatureLoss, weight: 130.0}",
]
no_logits = ["distillation.losses.logits=null"]
no_memory = ["distillation.losses.memory=null"]
