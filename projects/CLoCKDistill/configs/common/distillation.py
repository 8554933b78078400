"""The method's two losses, with its constants (arXiv:2502.10683).

alpha, beta and the three weights of the logit loss are quoted by a third party from the paper and were not checked
against it. They scale a sum over channels and objects: watch `gradient_share/*` in metrics.json on another width or
data set.
"""

from detectron2.config import LazyCall as L

from clockdistill.distillation import DistillationHook, MemoryLoss, TargetAwareLogitLoss

distillation = L(DistillationHook)(
    teacher=dict(config="", checkpoint=""),
    losses=[
        L(MemoryLoss)(alpha=5e-5, beta=1e-7, feature="tokens"),
        L(TargetAwareLogitLoss)(class_weight=1.0, l1_weight=5.0, giou_weight=2.0, temperature=1.0, confidence=True),
    ],
    embedding="denoising",
    # for embedding="calibrated": batches of the training data, and Adam's steps on each
    calibration=dict(batches=40, steps=10, lr=5e-3),
    period=200,
)
