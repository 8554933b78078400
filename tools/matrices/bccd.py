"""All methods on photographs of blood cells, evaluated on the validation set."""

from .methods import methods, no_masks, with_hint

matrix = dict(
    title="Blood cells",
    data="bccd",
    seeds=[0, 1, 2],
    iterations=250,
    overrides=[
        "model.num_classes=3",
        "dataloader.train.dataset.names=coco:$DETECTRON2_DATASETS/bccd/train.json",
        "dataloader.test.dataset.names=coco:$DETECTRON2_DATASETS/bccd/val.json",
    ],
    methods=methods,
    cells=dict(
        dino=dict(
            teacher=dict(config="dino/dino_r18_small_custom.py", iterations=800, seed=0),
            student="dino/dino_r18_tiny_custom.py",
            distilled="dino/dino_r18_small_to_tiny_custom.py",
            methods={"no masks": no_masks, "with hint": with_hint},
        ),
    ),
)
