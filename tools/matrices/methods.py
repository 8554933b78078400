"""What takes the place of the losses of a distillation config, or overrides of that config, by the method's name.

Other methods' weights are multiplied so that the gradients of their losses together have about three times the norm of
the detection loss's, for DINO's street student after 20 iterations with seed 100. From there `experiments.py tune` goes
up and down. The ratios of `balance` are those that CLoCKDistill's weights have there.
"""

from ...projects.CLoCKDistill.configs.common.methods import detrdistill, fgd, fitnets, kd_detr, mgd


def scaled(losses, factor):
    return {
        name: {key: value * factor if key.endswith("weight") else value for key, value in loss.items()}
        for name, loss in losses.items()
    }


methods = dict(
    clockdistill=[],
    balance=["distillation.balance={memory: 6, logits: 1}"],
    fitnets=scaled(fitnets, 75),
    fgd=scaled(fgd, 6),
    mgd=scaled(mgd, 300),
    kd_detr=scaled(kd_detr, 5),
    detrdistill=scaled(detrdistill, 3),
)
