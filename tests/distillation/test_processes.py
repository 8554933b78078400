import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from helpers.distillation import VARIANTS, save_teacher
from helpers.gradients import assert_equal_gradients, step_gradients

BALANCE = {"memory": 1.0, "logits": 0.3, "fgd": 0.1}
# teacher ("" for none), student, batches per step, and `balance`
DISTRIBUTED = [
    ("dino", "dino", 1, None),
    ("dino", "dab_detr", 2, None),
    ("dab_detr", "dino", 2, BALANCE),
    ("dab_detr", "deformable_detr", 1, None),
    ("deformable_detr.two_stage", "deformable_detr.two_stage", 2, None),
    ("", "dino", 2, None),
]


def gradients(teacher, student, folder, **options):
    files = dict(config=f"{folder}/{teacher}/teacher.yaml", checkpoint=f"{folder}/{teacher}/teacher.pth")
    return step_gradients(student, files if teacher else None, VARIANTS.get(teacher), **options)


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for teacher, student, accumulate, balance in DISTRIBUTED:
        result = gradients(
            teacher,
            student,
            folder,
            rank=rank,
            world=2,
            accumulate=accumulate,
            images=4 * accumulate,
            activation_checkpointing=True,
            balance=balance,
        )
        if rank == 0:
            torch.save(result, f"{folder}/{teacher}_{student}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A folder with the teachers, and with the gradients of all pairs by two processes."""
    folder = tmp_path_factory.mktemp("distributed")
    for variant in {teacher for teacher, *_ in DISTRIBUTED if teacher}:
        (folder / variant).mkdir()
        save_teacher(folder / variant, variant, embed_dim=64)
    mp.spawn(work, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize(("teacher", "student", "accumulate", "balance"), DISTRIBUTED)
def test_two_processes_give_the_gradients_of_one_on_the_joint_batch(
    two_processes, teacher, student, accumulate, balance
):
    """So do several batches per step, and activation checkpointing, also with weights that follow the gradients."""
    one = gradients(teacher, student, two_processes, images=4 * accumulate, balance=balance)
    two = torch.load(two_processes / f"{teacher}_{student}.pth", weights_only=True)
    assert any(name.startswith("query_adapter.content") for name in one) == bool(teacher)
    assert_equal_gradients(two, one)
