"""The trainer hook that owns the teacher and the distillation losses."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..checks import check, checked, count, not_negative, one_of, optional
from ..config_file import build
from ..errors import UserError
from ..modeling import Detector, Outputs, Queries, Targets
from ..modeling.criterion import average_over_ranks
from ..modeling.parallel import synchronized
from .balance import GradientBalance, ratios_of
from .base import DistillationLoss
from .calibration import calibrate, calibration_path, check_settings, fingerprint, load_embedding, save_embedding
from .gradients import log_gradient_shares
from .target_queries import QueryAdapter, check_source, make_embedding
from .teacher import PAIRINGS, load_teacher, pair_levels

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
        level_pairing: "stride" or "order", which levels of the memories are compared, see `pair_levels`.
        balance: for some of the losses, by name, the wanted norm of the gradient, divided by that of the detection
            loss. Their weights are set accordingly, see `GradientBalance`. None sets no weights.
        balance_period: number of iterations between changes of these weights.

    Attributes:
        teacher_classes: names in the teacher's checkpoint, by class id, or None.
        modules: the losses and the student's query adapter, whose parameters are trained with the student, and with
            `balance` the weights of the losses.
    """

    @checked(gradient_share_period=not_negative, level_pairing=one_of(*PAIRINGS), balance_period=count)
    def __init__(
        self,
        student: Detector,
        teacher: Mapping[str, str],
        losses: Mapping[str, DistillationLoss | None],
        embedding: str,
        gradient_share_period: int,
        calibration: Mapping[str, float] | None = None,
        level_pairing: str = "stride",
        balance: Mapping[str, float] | None = None,
        balance_period: int = 50,
    ):
        losses = {name: build_loss(name, loss) for name, loss in losses.items() if loss is not None}
        if reserved := next((name for name in losses if hasattr(nn.ModuleDict(), name)), None):
            raise UserError(f"distillation.losses.{reserved} has a name that torch uses itself: choose another")
        if not losses:
            raise UserError(
                "distillation.losses is empty: add a loss, or use the student's config to train without one"
            )
        check({"balance": balance}, {"balance": optional(ratios_of(*losses))})
        self.teacher, self.teacher_classes = load_teacher(teacher["config"], teacher["checkpoint"], student)
        self.gradient_share_period = gradient_share_period
        self.requires_targets = any(loss.requires_targets for loss in losses.values())
        self.requires_objects = any(loss.requires_objects for loss in losses.values())
        self.teacher_levels, self.student_levels = pair_levels(self.teacher.strides, student.strides, level_pairing)
        self.requires_memory = any(loss.requires_memory for loss in losses.values())
        if self.requires_memory and not self.student_levels:
            teacher_strides, student_strides = (", ".join(map(str, m.strides)) for m in (self.teacher, student))
            raise UserError(
                f"the teacher's memory has levels of stride {teacher_strides} and the student's of {student_strides}, "
                "and they share none: set the student's model.neck.in_features to levels of the teacher, or "
                "distillation.level_pairing=order, or remove the losses that compare memories"
            )
        pairs = zip(self.teacher_levels, self.student_levels, strict=True)
        strides = [(self.teacher.strides[i], student.strides[j]) for i, j in pairs]
        if self.requires_memory:
            text = ", ".join(f"{first} with {second}" for first, second in strides)
            logger.info(f"Comparing memories on these strides (teacher's with student's): {text}")

        for loss in losses.values():
            loss.level_scales = [second / first for first, second in strides]
            loss.build(self.teacher, student)
        self.modules = nn.ModuleDict({"losses": nn.ModuleDict(losses)})
        self.balance = None if balance is None else GradientBalance(balance, balance_period)
        if self.balance is not None:
            self.modules["balance"] = self.balance
        check_source(embedding)
        if self.requires_targets:
            if embedding == "calibrated":
                check_settings(calibration)
            self.embedding = make_embedding(embedding, self.teacher)
            self.calibration = calibration if embedding == "calibrated" else None
            self.calibration_path = calibration_path(teacher["checkpoint"])
        shares_queries = self.requires_targets or any(loss.makes_queries for loss in losses.values())
        if shares_queries:
            self.modules["query_adapter"] = QueryAdapter(self.teacher, student)
        self.modules.to(student.device)
        self.losses = {name: wrap_ddp(loss) for name, loss in losses.items()}
        self.query_adapter = wrap_ddp(self.modules["query_adapter"]) if shares_queries else None

    def before_train(self) -> None:
        self.trainer.set_loss_function(self.step_losses)

    def calibrate(self, data: Iterable[list[dict]], source: Mapping[str, Any] | None = None) -> None:
        """Fit the target queries to the teacher if the config says so, or load those of an earlier run.

        Args:
            data: batches after augmentation.
            source: plain values that tell these data from others. Only an embedding of the same source is loaded.
        """
        if not self.requires_targets or self.calibration is None:
            return
        origin = dict(teacher=fingerprint(self.teacher), **self.calibration, data=dict(source or {}))
        loaded = load_embedding(self.embedding, self.calibration_path, origin)
        # if only some of several machines have the file, all calibrate together
        if not all(comm.all_gather(loaded)):
            calibrate(self.embedding, self.teacher, data, **self.calibration)
            if comm.is_main_process():
                save_embedding(self.embedding, self.calibration_path, origin)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters to train with the student's."""
        return self.modules.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        return self.modules.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.modules.load_state_dict(state)

    def compute_losses(self, model: nn.Module, data: list[dict], loss_scale: float = 1.0) -> dict[str, Tensor]:
        """Compute the losses of a step with one batch; see `step_losses`."""
        return next(self.step_losses(model, [data], loss_scale))

    def step_losses(
        self, model: nn.Module, batches: Sequence[list[dict]], loss_scale: float = 1.0
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the losses of each batch: the student's own, and `loss_<name>_<term>` of every distillation loss.

        The teacher sees all batches first, because its outputs determine what the losses are divided by.

        Args:
            model: the student, perhaps in DistributedDataParallel; its forward runs once per batch.
            batches: of equal size, after augmentation.
            loss_scale: factor of the losses in the backward pass, in float16.
        """
        student: Detector = getattr(model, "module", model)
        targets = student.joint_targets(batches)
        queries, outputs = map(list, zip(*map(self.forward_teacher, batches, targets), strict=True))
        normalizers = self.normalizers(outputs, targets)
        modules = [model, self.query_adapter, *self.losses.values()]
        for index, part in enumerate(zip(batches, targets, queries, strict=True)):
            is_last = index == len(batches) - 1
            with synchronized(modules, is_last):
                # each batch's outputs are freed after its step
                losses, values = self.batch_losses(model, *part, outputs.pop(0), normalizers)
            if self.balance is not None:
                values = self.balance(sum(losses.values()), values, student, loss_scale, is_last)
            terms = {f"loss_{name}_{term}": v for name, loss in values.items() for term, v in loss.items()}
            if index == 0 and self.gradient_share_period and get_event_storage().iter % self.gradient_share_period == 0:
                log_gradient_shares({"loss_detection": sum(losses.values()), **terms}, student, loss_scale)
            yield losses | terms

    def batch_losses(
        self,
        model: nn.Module,
        data: list[dict],
        targets: Targets,
        teacher_queries: Mapping[str, Queries],
        teacher_outputs: Outputs,
        normalizers: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Return the student's own losses for a batch, and the terms of each distillation loss."""
        student_queries = self.query_adapter(teacher_queries) if teacher_queries else {}
        losses, student_outputs = model(data, targets=targets, extra_queries=student_queries, with_outputs=True)
        if self.requires_memory:
            student_memory = student_outputs.memory.select(self.student_levels)
            student_outputs = replace(student_outputs, memory=student_memory)
        terms = {}
        for name, loss in self.losses.items():
            select = self.modules["losses"][name].select
            normalizer = [normalizers[name]] if name in normalizers else []
            with explain_missing_output(name):
                values = loss(select(teacher_outputs, name), select(student_outputs, name), targets, *normalizer)
            if not isinstance(values, dict) or not all(
                isinstance(value, Tensor) and value.dim() == 0 for value in values.values()
            ):
                raise UserError(f"distillation.losses.{name} must return scalar losses by name, as in {{'name': loss}}")
            terms[name] = values
        return losses, terms

    @torch.no_grad()
    def normalizers(self, outputs: Sequence[Outputs], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return what losses are divided by, averaged over batches and processes, for those that are."""
        normalizers = {}
        for name, loss in self.modules["losses"].items():
            with explain_missing_output(name):
                values = [loss.normalizer(loss.select(o, name), t) for o, t in zip(outputs, targets, strict=True)]
            if values[0] is not None:
                normalizers[name] = average_over_ranks(torch.stack([value.float() for value in values]).mean(0))
        return normalizers

    # not in inference mode, because autograd saves the teacher's outputs for the backward pass of the losses
    @torch.no_grad()
    def forward_teacher(self, data: list[dict], targets: Targets) -> tuple[dict[str, Queries], Outputs]:
        """Run the teacher on the student's batch, as far as the losses require its outputs.

        Returns:
            the extra queries for both decoders: `targets`, and `<name of the loss>.<group>`.
            the teacher's outputs.
        """
        teacher = self.teacher
        memory = teacher.encode(teacher.preprocess(data))
        objects = teacher.propose(memory) if self.requires_objects else None
        extra = {"targets": self.embedding(targets)} if self.requires_targets else {}
        for name, loss in self.modules["losses"].items():
            made = loss.queries(teacher, memory, objects if loss.requires_objects else None, targets)
            if None in made.values():
                raise UserError(
                    f"distillation.losses.{name} returns object queries that it does not require: set requires_objects "
                    "of its class to True"
                )
            extra |= {f"{name}.{group}": queries for group, queries in made.items()}
        # groups that are the object queries need no second pass
        own = {"objects": objects} if objects is not None else {}
        groups = own | {name: queries for name, queries in extra.items() if queries is not objects}
        with record_content(teacher) if objects is not None else contextlib.nullcontext([]) as content:
            predictions = teacher.decode_groups(memory, groups) if groups else {}
        return extra, Outputs(
            memory.select(self.teacher_levels) if self.requires_memory else None,
            predictions.get("objects"),
            {name: predictions[name if name in groups else "objects"] for name in extra},
            torch.stack(content)[:, :, : len(objects)] if objects is not None else None,
        )


def build_loss(name: str, config: Mapping | DistillationLoss) -> DistillationLoss:
    """Instantiate a loss, which Detectron2 does not do for values of a dictionary."""
    return build(config, f"distillation.losses.{name}")


@contextlib.contextmanager
def record_content(detector: Detector) -> Iterator[list[Tensor]]:
    """Record the content of the queries (B, Q, C) after each decoder layer, in the list that is returned."""
    content: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: content.append(output))
        for layer in detector.decoder.layers
    ]
    try:
        yield content
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def explain_missing_output(name: str) -> Iterator[None]:
    """Name the loss that uses an output which it does not require."""
    try:
        yield
    except AttributeError as error:
        if "'NoneType' object" not in str(error):
            raise
        raise UserError(
            f"distillation.losses.{name} uses an output that it does not require ({error}): set "
            "requires_memory, requires_objects or requires_targets of its class to True"
        ) from error


def wrap_ddp(module: nn.Module) -> nn.Module:
    """Wrap a module in DistributedDataParallel if there are several processes and it has parameters to train."""
    if comm.get_world_size() > 1 and any(p.requires_grad for p in module.parameters()):
        return DistributedDataParallel(module)
    return module
