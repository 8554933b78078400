"""CLoCKDistill on street scenes, with one of its parts left out or replaced in each run."""

matrix = dict(
    title="Ablation on street scenes",
    data="street",
    seeds=[0, 1, 2],
    iterations=400,
    methods={
        "clockdistill": [],
        "backbone feature": ["distillation.losses.memory.feature=backbone"],
        "no masks": [
            "distillation.losses.memory=null",
            "+distillation.losses.plain={_target_: clockdistill.distillation.PlainFeatureLoss, weight: 1.0}",
        ],
        "no logits": ["distillation.losses.logits=null"],
        "matched logits": [
            "distillation.losses.logits={_target_: clockdistill.distillation.MatchedLogitLoss, "
            'matcher: "${model.criterion.matcher}"}'
        ],
        "no confidence": ["distillation.losses.logits.weight_by_confidence=False"],
        "random embedding": ["distillation.embedding=random"],
        "no memory": ["distillation.losses.memory=null"],
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
