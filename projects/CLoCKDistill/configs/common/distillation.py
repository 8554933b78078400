"""The two losses of CLoCKDistill (arXiv:2502.10683).

alpha, beta and the weights of the logit loss are the paper's values as quoted by two other projects; they were not
checked against the paper itself. They scale sums over channels and objects: check `gradient_share/*` in metrics.json
for another width or dataset.
"""

from detectron2.config import LazyCall as L

from clockdistill.distillation import DistillationHook, MemoryLoss, TargetAwareLogitLoss

distillation = L(DistillationHook)(
    teacher=dict(config="", checkpoint=""),
    losses=dict(
        memory=L(MemoryLoss)(alpha=5e-5, beta=1e-7, feature="memory"),
        logits=L(TargetAwareLogitLoss)(
            class_weight=1.0, l1_weight=5.0, giou_weight=2.0, temperature=1.0, weight_by_confidence=True
        ),
    ),
    embedding="denoising",
    # "order" for a student without the teacher's finest level
    level_pairing="stride",
    # for embedding="calibrated": number of training batches, Adam steps on each, learning rate
    calibration=dict(batches=40, steps=10, lr=5e-3),
    gradient_share_period=200,
    # wanted norms of the losses' gradients, divided by that of the detection loss, as in dict(memory=1.0, logits=0.3);
    # their weights are then set every balance_period iterations
    balance=None,
    balance_period=50,
)
