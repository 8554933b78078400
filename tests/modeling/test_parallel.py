import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clockdistill.modeling.parallel import synchronized


def test_gradients_are_averaged_over_processes_only_if_this_is_enabled(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module, averaged = DistributedDataParallel(nn.Linear(1, 1, bias=False)), []

        def average(_, bucket):
            averaged.append(bucket.buffer().item())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        module.register_comm_hook(None, average)
        for value, enabled in ((1.0, False), (2.0, False), (4.0, True)):
            with synchronized([None, nn.Identity(), module], enabled):
                output = module(torch.tensor([[value]]))
            output.sum().backward()
        assert averaged == [1.0 + 2.0 + 4.0]
    finally:
        dist.destroy_process_group()
