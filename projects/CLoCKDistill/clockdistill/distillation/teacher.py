"""The frozen teacher, and the levels that its memory shares with the student's."""

from collections.abc import Sequence

from ..config_file import build, execute_config
from ..errors import UserError
from ..modeling import Detector
from ..modeling.weights import WeightLoader, is_missing, metadata_of


def load_teacher(config: str, checkpoint: str, student: Detector) -> tuple[Detector, list[str] | None]:
    """Return a frozen detector in eval mode, with the student's number of classes, and its class names if it has them.

    Args:
        config: path of a LazyConfig file with a `model`.
        checkpoint: path of its weights.

    Raises:
        UserError: a file is missing, the checkpoint is of another model, or the numbers of classes differ.
    """
    if not checkpoint:
        raise UserError("no teacher checkpoint is given: set distillation.teacher.checkpoint=PATH")
    if is_missing(checkpoint):
        raise UserError(
            f"teacher checkpoint {checkpoint} does not exist: train the teacher first, or set "
            "distillation.teacher.checkpoint to its weights"
        )
    if not config:
        raise UserError("no teacher config is given: set distillation.teacher.config=PATH")
    cfg = execute_config(config)
    if cfg.get("model") is None:
        raise UserError(f"teacher config {config} has no `model`: give the config that the teacher was trained with")
    cfg.model.num_classes = student.num_classes
    try:
        teacher = build(cfg.model, "model")
    except UserError as error:
        raise UserError(f"teacher config {config}: {error}") from error
    loader = WeightLoader(teacher)
    contents = loader.load(checkpoint, checkpointables=[])
    for _, saved, built in loader.report.mismatched:
        if built[0] == student.num_classes and saved[1:] == built[1:]:
            raise UserError(
                f"the teacher in {checkpoint} has {saved[0]} classes and the student {built[0]}: train both on "
                "the same classes"
            )
    if fault := loader.report.fault():
        raise UserError(f"teacher checkpoint {checkpoint} {fault}: give the checkpoint that was trained with {config}")
    return teacher.eval().requires_grad_(False).to(student.device), metadata_of(contents).get("class_names")


PAIRINGS = ("stride", "order")


def pair_levels(teacher: Sequence[int], student: Sequence[int], pairing: str = "stride") -> tuple[list[int], list[int]]:
    """Pair the memories' levels for comparison; the other levels are not compared.

    Args:
        teacher, student: the levels' strides.
        pairing: "stride" pairs levels of the same stride, or if none is shared, all levels of two memories with equally
            many. "order" pairs the first levels, the second levels, and so on, as far as both have them.

    Returns:
        indices of the teacher's levels and of the student's; empty if nothing can be compared.
    """
    count = min(len(teacher), len(student))
    in_order = list(range(count)), list(range(count))
    if pairing == "order":
        return in_order
    teacher_levels, student_levels = [], []
    for index, stride in enumerate(teacher):
        candidates = (i for i, other in enumerate(student) if other == stride and i not in student_levels)
        match = next(candidates, None)
        if match is not None:
            teacher_levels.append(index)
            student_levels.append(match)
    if not student_levels and len(teacher) == len(student):
        return in_order
    return teacher_levels, student_levels
