"""The trainer hook that owns the teacher and the distillation losses."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..checks import checked, not_negative
from ..config_file import build
from ..errors import UserError
from ..modeling import Detector, Outputs, Queries
from .base import DistillationLoss
from .calibration import calibrate, calibration_path, fingerprint, load_embedding, save_embedding
from .target_queries import QueryAdapter, check_source, make_embedding
from .teacher import load_teacher, pair_levels

logger = logging.getLogger(__name__)


class DistillationHook(HookBase):
    """Adds distillation losses to the detection losses of every step.

    Args:
        student: the detector to train, before it is wrapped in DistributedDataParallel.
        teacher: `config`, a LazyConfig file with a `model`, and `checkpoint`, its weights.
        losses: the distillation losses by name; None leaves one out.
        embedding: class embedding of the target queries: "denoising", learned by the teacher in denoising training;
            "calibrated", fitted to a teacher without one; "random", for ablations.
        gradient_share_period: number of iterations between logs of each loss's gradient share, each of which costs one
            backward pass per loss; 0 disables them.
        calibration: arguments `batches`, `steps` and `lr` of `calibrate`, for the "calibrated" embedding.

    Attributes:
        modules: the losses and the student's query adapter, whose parameters are trained with the student.
    """

    @checked(gradient_share_period=not_negative)
    def __init__(
        self,
        student: Detector,
        teacher: Mapping[str, str],
        losses: Mapping[str, DistillationLoss | None],
        embedding: str,
        gradient_share_period: int,
        calibration: Mapping[str, float] | None = None,
    ):
        losses = {name: build_loss(name, loss) for name, loss in losses.items() if loss is not None}
        if not losses:
            raise UserError(
                "distillation.losses is empty: add a loss, or use the student's config to train without one"
            )
        self.teacher = load_teacher(teacher["config"], teacher["checkpoint"], student)
        self.gradient_share_period = gradient_share_period
        self.requires_targets = any(loss.requires_targets for loss in losses.values())
        self.requires_objects = any(loss.requires_objects for loss in losses.values())
        self.teacher_levels, self.student_levels = pair_levels(self.teacher.strides, student.strides)
        requires_memory = any(loss.requires_memory for loss in losses.values())
        if requires_memory and not self.student_levels:
            teacher_strides, student_strides = (", ".join(map(str, m.strides)) for m in (self.teacher, student))
            raise UserError(
                f"the teacher's memory has levels of stride {teacher_strides} and the student's of {student_strides}, "
                "and they share none: set the student's model.neck.in_features to levels of the teacher, or remove the "
                "losses that compare memories"
            )
        if requires_memory:
            strides = ", ".join(str(student.strides[level]) for level in self.student_levels)
            logger.info(f"Memories are compared on the student's levels of stride {strides}")

        for loss in losses.values():
            loss.build(self.teacher, student)
        self.modules = nn.ModuleDict({"losses": nn.ModuleDict(losses)})
        check_source(embedding)
        if self.requires_targets:
            if embedding == "calibrated" and calibration is None:
                raise UserError("distillation.calibration is missing: set its batches, steps and lr")
            self.embedding = make_embedding(embedding, self.teacher)
            self.calibration = calibration if embedding == "calibrated" else None
            self.calibration_path = calibration_path(teacher["checkpoint"])
            self.modules["query_adapter"] = QueryAdapter(self.teacher, student)
        self.modules.to(student.device)
        self.losses = {name: wrap_ddp(loss) for name, loss in losses.items()}
        self.query_adapter = wrap_ddp(self.modules["query_adapter"]) if self.requires_targets else None

    def before_train(self) -> None:
        self.trainer.set_loss_function(self.compute_losses)

    def calibrate(self, data: Iterable[list[dict]]) -> None:
        """Fit the target queries to the teacher if the config says so, or load those of an earlier run.

        Args:
            data: batches after augmentation.
        """
        if not self.requires_targets or self.calibration is None:
            return
        teacher = fingerprint(self.teacher)
        loaded = load_embedding(self.embedding, self.calibration_path, teacher)
        # if only some of several machines have the file, all calibrate together
        if not all(comm.all_gather(loaded)):
            calibrate(self.embedding, self.teacher, data, **self.calibration)
            if comm.is_main_process():
                save_embedding(self.embedding, self.calibration_path, teacher)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters to train with the student's."""
        return self.modules.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        return self.modules.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.modules.load_state_dict(state)

    def compute_losses(self, model: nn.Module, data: list[dict], loss_scale: float = 1.0) -> dict[str, Tensor]:
        """Compute the step's losses: the student's own, and `loss_<name>_<term>` of every distillation loss.

        Args:
            model: the student, perhaps in DistributedDataParallel; its forward runs once.
            data: the batch, after augmentation.
            loss_scale: factor of the losses in the backward pass, in float16.
        """
        student: Detector = getattr(model, "module", model)
        targets = student.targets(data)
        teacher_queries = student_queries = None
        if self.requires_targets:
            teacher_queries = self.embedding(targets)
            student_queries = self.query_adapter(teacher_queries)
        teacher_outputs = self.forward_teacher(data, teacher_queries)
        losses, student_outputs = model(data, targets=targets, target_queries=student_queries, with_outputs=True)
        if self.student_levels:
            teacher_memory = teacher_outputs.memory.select(self.teacher_levels)
            teacher_outputs = replace(teacher_outputs, memory=teacher_memory)
            student_memory = student_outputs.memory.select(self.student_levels)
            student_outputs = replace(student_outputs, memory=student_memory)
        terms = {}
        for name, loss in self.losses.items():
            select = self.modules["losses"][name].select
            try:
                values = loss(select(teacher_outputs), select(student_outputs), targets)
            except AttributeError as error:
                if "'NoneType' object" not in str(error):
                    raise
                raise UserError(
                    f"distillation.losses.{name} uses an output that it does not require ({error}): set "
                    "requires_memory, requires_objects or requires_targets of its class to True"
                ) from error
            if not isinstance(values, dict) or any(value.dim() for value in values.values()):
                raise UserError(f"distillation.losses.{name} must return scalar losses by name, as in {{'name': loss}}")
            terms |= {f"loss_{name}_{term}": value for term, value in values.items()}
        if self.gradient_share_period and get_event_storage().iter % self.gradient_share_period == 0:
            log_gradient_shares({"loss_detection": sum(losses.values()), **terms}, student, loss_scale)
        return losses | terms

    @torch.no_grad()
    def forward_teacher(self, data: list[dict], target_queries: Queries | None) -> Outputs:
        """Run the teacher on the student's batch."""
        teacher = self.teacher
        memory = teacher.encode(teacher.preprocess(data))
        objects = teacher.decode(memory, teacher.propose(memory)) if self.requires_objects else None
        targets = teacher.decode(memory, target_queries) if target_queries is not None else None
        return Outputs(memory, objects, targets)


def build_loss(name: str, config: Mapping | DistillationLoss) -> DistillationLoss:
    """Instantiate a loss, which Detectron2 does not do for values of a dictionary."""
    return build(config, f"distillation.losses.{name}")


def wrap_ddp(module: nn.Module) -> nn.Module:
    """Wrap a module in DistributedDataParallel if there are several processes and it has parameters to train."""
    if comm.get_world_size() > 1 and any(p.requires_grad for p in module.parameters()):
        return DistributedDataParallel(module)
    return module


def log_gradient_shares(terms: dict[str, Tensor], student: nn.Module, loss_scale: float) -> None:
    """Log the norm of each term's gradient with respect to the student's parameters, divided by their sum."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        if term.requires_grad:
            # scaled as in the backward pass, so that small gradients do not vanish in float16
            gradients = torch.autograd.grad(term * loss_scale, parameters, retain_graph=True, materialize_grads=True)
            norms[name] = torch.linalg.vector_norm(torch.stack([g.float().norm() for g in gradients]))
    total = sum(norms.values())
    if total.isfinite():
        shares = {f"gradient_share/{name.removeprefix('loss_')}": float(n / total) for name, n in norms.items()}
        get_event_storage().put_scalars(smoothing_hint=False, **shares)
