"""The trainer hook that owns teacher, losses and projections."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config_file import execute_config
from ..errors import UserError
from ..modeling import Detector, Outputs, Queries
from ..modeling.weights import load_weights
from .base import DistillationLoss
from .calibration import (
    BoxEncoder,
    TargetEmbedding,
    calibrate,
    calibration_path,
    fingerprint,
    load_embedding,
    save_embedding,
)

SOURCES = ("denoising", "calibrated", "random")

logger = logging.getLogger(__name__)


def load_teacher(config: str, checkpoint: str, student: Detector) -> Detector:
    """A frozen detector in eval mode, with the student's number of classes, whatever its config says.

    Raises:
        UserError: if a file is missing, a parameter is not in the checkpoint, or the classes are not the student's.
    """
    if not checkpoint:
        raise UserError("no teacher checkpoint is given: set distillation.teacher.checkpoint=PATH")
    if not config:
        raise UserError("no teacher config is given: set distillation.teacher.config=PATH")
    cfg = execute_config(config)
    if cfg.get("model") is None:
        raise UserError(f"teacher config {config} has no `model`: give the config that the teacher was trained with")
    cfg.model.num_classes = student.num_classes
    teacher = instantiate(cfg.model)
    report = load_weights(teacher, checkpoint)
    for _, theirs, ours in report.mismatched:
        if ours[0] == student.num_classes and theirs[1:] == ours[1:]:
            raise UserError(
                f"the teacher of {checkpoint} has {theirs[0]} classes and the student {ours[0]}: train both on "
                "the same classes"
            )
    if unset := report.unset:
        raise UserError(
            f"teacher checkpoint {checkpoint} leaves {len(unset)} parameters or buffers of {config} unset, "
            f"{unset[0]} among them: give the checkpoint that was trained with this config"
        )
    return teacher.eval().requires_grad_(False).to(student.device)


def pair_levels(teacher: Sequence[int], student: Sequence[int]) -> tuple[list[int], list[int]]:
    """Which level of the teacher's memory is compared with which of the student's.

    Those of the same stride are; levels that only one of the two has are not compared. Where no stride is shared, as by
    one level of stride 32 and one of stride 16, memories of as many levels are compared in order.

    Args:
        teacher, student: the levels' strides.

    Returns:
        indices of the teacher's levels, and of the student's in the same order; empty where nothing can be compared.
    """
    theirs, ours = [], []
    for index, stride in enumerate(teacher):
        match = next((other for other, s in enumerate(student) if s == stride and other not in ours), None)
        if match is not None:
            theirs.append(index)
            ours.append(match)
    if not ours and len(teacher) == len(student):
        return list(range(len(teacher))), list(range(len(student)))
    return theirs, ours


class DistillationHook(HookBase):
    """Adds the distillation losses to the detector's own at every step.

    Args:
        student: the detector that is trained, before it is wrapped for several processes.
        teacher: `config`, a LazyConfig file with a `model`, and `checkpoint`, its weights.
        losses: what is distilled.
        embedding: where the target queries' content comes from: "denoising", the embedding that the teacher learnt in
            denoising; "calibrated", one fitted to a teacher that learnt none, by `calibrate`; or "random", an ablation.
        period: iterations between measurements of every term's share of the gradient, which cost a backward pass a
            term; 0 for none.
        calibration: `batches`, `steps` and `lr` of the function `calibrate`, where one is needed.
    """

    asks_targets = False

    def __init__(
        self,
        student: Detector,
        teacher: dict[str, str],
        losses: list[DistillationLoss],
        embedding: str,
        period: int,
        calibration: dict[str, float] | None = None,
    ):
        self.teacher = load_teacher(teacher["config"], teacher["checkpoint"], student)
        self.losses = list(losses)
        self.period = period
        self.asks_targets = any(loss.asks_targets for loss in self.losses)
        self.asks_objects = any(loss.asks_objects for loss in self.losses)
        student_dim, teacher_dim = student.embed_dim, self.teacher.embed_dim
        self.teacher_levels, self.student_levels = pair_levels(self.teacher.strides, student.strides)
        if not self.student_levels and any(loss.asks_memory for loss in self.losses):
            theirs, ours = (", ".join(map(str, model.strides)) for model in (self.teacher, student))
            raise UserError(
                f"the teacher's memory has levels of stride {theirs} and the student's of {ours}, none of which they "
                "share: choose others by the student's model.neck.in_features, or leave out the losses that compare "
                "memories"
            )
        strides = ", ".join(str(student.strides[level]) for level in self.student_levels)
        logger.info(f"Memories are compared on the student's levels of stride {strides or 'none'}")

        self.projections = nn.ModuleDict()
        for index, loss in enumerate(self.losses):
            projection = loss.make_projection(student_dim, teacher_dim)
            if projection is not None:
                self.projections[str(index)] = projection
        if self.asks_targets:
            if embedding == "calibrated" and calibration is None:
                raise UserError("distillation.calibration is missing: set its batches, steps and lr")
            self.embedding = self.make_embedding(embedding).to(self.teacher.device).requires_grad_(False)
            self.calibration = calibration if embedding == "calibrated" else None
            self.calibration_path = calibration_path(teacher["checkpoint"])
            if student_dim != teacher_dim:
                self.projections["content"] = nn.Linear(teacher_dim, student_dim)
            self.gives_position = not student.encodes_boxes
            if self.gives_position and self.teacher.encodes_boxes:
                self.projections["position"] = BoxEncoder(student_dim)
            elif self.gives_position and student_dim != teacher_dim:
                self.projections["position"] = nn.Linear(teacher_dim, student_dim)
        self.projections.to(student.device)
        self.wrapped = dict(self.projections)
        if comm.get_world_size() > 1:
            self.wrapped = {name: DistributedDataParallel(p) for name, p in self.wrapped.items()}
        for index, loss in enumerate(self.losses):
            loss.projection = self.wrapped.get(str(index))

    def make_embedding(self, source: str) -> TargetEmbedding:
        if source not in SOURCES:
            raise UserError(f'distillation.embedding is "{source}": choose one of {", ".join(SOURCES)}')
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            embedding = TargetEmbedding(self.teacher)
        if source == "denoising":
            if self.teacher.label_embedding is None:
                raise UserError("the teacher was trained without denoising: set distillation.embedding=calibrated")
            embedding.content.load_state_dict(self.teacher.label_embedding.state_dict())
        return embedding

    def calibrate(self, data: Iterable[list[dict]]) -> None:
        """Fit the target queries to the teacher, where the config asks for it, or load them from an earlier run's file.

        Args:
            data: batches after augmentation.
        """
        if not self.asks_targets or self.calibration is None:
            return
        teacher = fingerprint(self.teacher)
        found = load_embedding(self.embedding, self.calibration_path, teacher)
        # with the file on one machine of several, all fit it again together
        if not all(comm.all_gather(found)):
            calibrate(self.embedding, self.teacher, data, **self.calibration)
            if comm.is_main_process():
                save_embedding(self.embedding, self.calibration_path, teacher)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the projections, to be optimised with the student."""
        return self.projections.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        return self.projections.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.projections.load_state_dict(state)

    def step_losses(self, model: nn.Module, data: list[dict]) -> dict[str, Tensor]:
        """The step's loss dictionary.

        Args:
            model: the student, wrapped for several processes or not; its forward is called once.
            data: the batch, after augmentation.
        """
        student: Detector = getattr(model, "module", model)
        targets = student.targets(data)
        asked_of_teacher = asked_of_student = None
        if self.asks_targets:
            asked_of_teacher = self.embedding(targets)
            asked_of_student = self.translate(asked_of_teacher)
        theirs = self.ask_teacher(data, asked_of_teacher)
        losses, ours = model(data, extra=asked_of_student, with_outputs=True)
        if self.student_levels:
            theirs = replace(theirs, memory=theirs.memory.select(self.teacher_levels))
            ours = replace(ours, memory=ours.memory.select(self.student_levels))
        terms = {}
        for loss in self.losses:
            new = loss(theirs, ours, targets)
            if clash := terms.keys() & new.keys():
                raise UserError(f"two losses of distillation.losses are called {min(clash)}: keep one of them")
            terms |= new
        if self.period and self.trainer.iter % self.period == 0:
            self.log_gradient_shares({"det": sum(losses.values()), **terms}, student)
        return losses | terms

    def translate(self, queries: Queries) -> Queries:
        """The teacher's target queries as the student takes them: of its width, with a position where it makes none."""
        content, position = queries.content, queries.position
        if "content" in self.wrapped:
            content = self.wrapped["content"](content)
        if "position" in self.wrapped:
            position = self.wrapped["position"](queries.reference if position is None else position)
        return replace(queries, content=content, position=position if self.gives_position else None)

    @torch.no_grad()
    def ask_teacher(self, data: list[dict], queries: Queries | None) -> Outputs:
        teacher = self.teacher
        memory = teacher.encode(teacher.preprocess(data))
        objects = teacher.decode(memory, teacher.propose(memory)) if self.asks_objects else None
        extra = teacher.decode(memory, queries) if queries is not None else None
        return Outputs(memory, objects, extra)

    def log_gradient_shares(self, terms: dict[str, Tensor], student: nn.Module) -> None:
        """Norm of every term's gradient on the student's parameters, as shares of their sum."""
        parameters = [p for p in student.parameters() if p.requires_grad]
        # as in the backward pass: what is too small for float16 is scaled into its range
        scale = self.trainer.grad_scaler.get_scale()
        norms = {}
        for name, term in terms.items():
            gradients = torch.autograd.grad(term * scale, parameters, retain_graph=True, allow_unused=True)
            gradients = [g.float() for g in gradients if g is not None]
            norms[name] = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
        total = sum(norms.values())
        if not total.isfinite():
            return
        shares = {f"gradient_share/{name.removeprefix('loss_')}": float(n / total) for name, n in norms.items()}
        get_event_storage().put_scalars(smoothing_hint=False, **shares)
