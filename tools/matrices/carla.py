"""All methods on CARLA frames of 640x380, at a third of their size: three towns to train, a fourth to test."""

from .methods import methods, no_logits, no_masks, no_memory, with_hint

matrix = dict(
    title="CARLA",
    data="carla",
    seeds=[0, 1, 2],
    iterations=400,
    overrides=[
        "model.num_classes=5",
        "dataloader.train.dataset.names=coco:$DETECTRON2_DATASETS/carla/train.json",
        "dataloader.test.dataset.names=coco:$DETECTRON2_DATASETS/carla/val.json",
        "dataloader.train.mapper.augmentations.3.short_edge_length=[116,127,138]",
        "dataloader.train.mapper.augmentations.3.max_size=240",
        "dataloader.test.mapper.augmentations.0.short_edge_length=127",
        "dataloader.test.mapper.augmentations.0.max_size=214",
    ],
    methods=methods,
    cells={
        family: dict(
            teacher=dict(config=f"{family}/{family}_r18_small_custom.py", iterations=1500, seed=0),
            student=f"{family}/{family}_r18_tiny_custom.py",
            distilled=f"{family}/{family}_r18_small_to_tiny_custom.py",
            methods={"no masks": no_masks} | variants,
        )
        for family, variants in dict(
            # to find out why DINO's student gains nothing
            dino={"no logits": no_logits, "no memory": no_memory, "with hint": with_hint},
            deformable_detr={},
        ).items()
    },
)
