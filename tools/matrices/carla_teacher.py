"""CARLA with a teacher that was trained for twice as long, because its loss was still falling."""

from .carla import matrix as carla

cell = carla.cells.dino

matrix = dict(
    title="CARLA",
    data=carla.data,
    seeds=carla.seeds,
    iterations=carla.iterations,
    overrides=carla.overrides,
    methods={"clockdistill": []},
    cells=dict(dino_long_teacher=dict(cell, methods={}, teacher=dict(cell.teacher, iterations=3000))),
)
