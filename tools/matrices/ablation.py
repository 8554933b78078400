"""CLoCKDistill on street scenes, with one of its parts left out or replaced in each run.

A loss that replaces the memory loss has a weight with which its gradient is as long as the memory loss's, for DINO's
student after 10 to 30 iterations with seed 100.
"""

from .methods import no_logits, no_masks, no_memory

matrix = dict(
    title="Ablation on street scenes",
    data="street_ablation",
    seeds=[0, 1, 2],
    iterations=200,
    methods={
        "clockdistill": [],
        "backbone feature": [
            "distillation.losses.memory.feature=backbone",
            "distillation.losses.memory.alpha=0.03",
            "distillation.losses.memory.beta=0.03",
        ],
        "no masks": no_masks,
        "no logits": no_logits,
        "matched logits": [
            "distillation.losses.logits={_target_: clockdistill.distillation.MatchedLogitLoss, "
            'matcher: "${model.criterion.matcher}"}'
        ],
        "no confidence": ["distillation.losses.logits.weight_by_confidence=False"],
        "random embedding": ["distillation.embedding=random"],
        "no memory": no_memory,
    },
    cells=dict(
        dino=dict(
            student="dino/dino_r18_tiny_street.py",
            distilled="dino/dino_r18_small_to_tiny_street.py",
            # only DINO's teacher has learned an embedding: its config's is "denoising"
            methods={"calibrated embedding": ["distillation.embedding=calibrated"]},
        ),
        deformable_detr=dict(
            student="deformable_detr/deformable_detr_r18_tiny_street.py",
            distilled="deformable_detr/deformable_detr_r18_small_to_tiny_street.py",
        ),
    ),
)
