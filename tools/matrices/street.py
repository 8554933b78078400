"""All methods on the demo's street scenes, for every family, and with a light student."""

from .methods import methods, with_hint

matrix = dict(
    title="Street scenes",
    data="street",
    seeds=[0, 1, 2],
    iterations=400,
    methods=methods,
    cells={
        family: dict(
            student=f"{family}/{family}_r18_tiny_street.py",
            distilled=f"{family}/{family}_r18_small_to_tiny_street.py",
            **options,
        )
        for family, options in dict(
            dino=dict(methods={"with hint": with_hint}),
            deformable_detr={},
            # it learns more slowly: after 400 iterations the plain student has 8 AP
            dab_detr=dict(iterations=1000),
        ).items()
    }
    | {"dino_light": dict(student="dino/dino_r18_light_street.py", distilled="dino/dino_r18_small_to_light_street.py")},
    # a seed and images that are not reported
    tuning=dict(
        cell="dino",
        seed=100,
        iterations=200,
        factors=[0.1, 0.3, 1, 3],
        overrides=[
            'dataloader.test.dataset.names="kitti:$DETECTRON2_DATASETS/street_scenes_tuning:val:'
            'Car+Van+Truck+Pedestrian+Cyclist"'
        ],
    ),
)
