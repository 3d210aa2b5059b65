"""Training in several processes, each on a part of every batch.

The loss is a sum over samples, so the gradient of a batch is the sum of the gradients of its parts. Gradients
are summed over the ranks, not averaged as in ``DistributedDataParallel``: a step is then the step of one
process with the whole batch, also where its length matters, as in clipping. Parameters without a gradient
have none on any rank, since all ranks are at one resolution.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mano_op.data.sampler import ranks
from mano_op.errors import InputError


def join(device: str) -> str:
    """Join the process group, if ``torchrun`` has started this process, and return the device.

    "cuda" becomes the GPU of this process's number on its machine. The group stays until the process ends:
    torch cannot make a second one at torchrun's addresses.
    """
    started = dist.is_available() and dist.is_torchelastic_launched()
    if device == "cuda" and started:
        number, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if n_gpus and number >= n_gpus:  # `check_device` refuses a machine without any
            raise InputError(
                f"device='cuda' for process {number} of this machine, which has {n_gpus} GPUs: start as many "
                "processes with torchrun --nproc-per-node as there are"
            )
        device = f"cuda:{number}" if n_gpus else device
    if started and not dist.is_initialized() and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("nccl" if device.startswith("cuda:") else "gloo")
        atexit.register(_leave)
    return device


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Return whether this process is the one that writes files and messages."""
    return ranks()[1] == 0


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients over all ranks, in place."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if ranks()[0] == 1 or not gradients:
        return
    # One message in place of one for each parameter; complex numbers are sent as two real ones.
    real = [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in gradients]
    flat = torch.cat([g.reshape(-1) for g in real])
    dist.all_reduce(flat)
    for gradient, like, part in zip(gradients, real, flat.split([g.numel() for g in real]), strict=True):
        total = part.view(like.shape)
        gradient.copy_(torch.view_as_complex(total) if gradient.is_complex() else total)


def sum_numbers(*numbers: float, device: str = "cpu") -> tuple[float, ...]:
    """Return the sums over all ranks, the same on each to the last bit."""
    if ranks()[0] == 1:
        return numbers
    # In float64, which Apple's GPUs do not have; there are no process groups on them either.
    values = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return tuple(values.tolist())


def copy_from_first(model: nn.Module) -> None:
    """Give all ranks the parameters and buffers of the first: other machines may draw others by one seed."""
    if ranks()[0] == 1:
        return
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            dist.broadcast(torch.view_as_real(value) if value.is_complex() else value, 0)


def wait_for_all() -> None:
    """Wait for all ranks, so that all find the files that one has written."""
    if ranks()[0] > 1:
        dist.barrier()


def check_all_have(what: str, number: int, device: str) -> None:
    """Refuse to continue, on all ranks, if they have read different numbers."""
    n_ranks, rank = ranks()
    numbers = sum_numbers(*(float(number) * (i == rank) for i in range(n_ranks)), device=device)
    if len(set(numbers)) > 1:
        raise InputError(
            f"{what} is {[*map(int, numbers)]} on ranks 0 to {n_ranks - 1}: give a folder that all of them "
            "see, with the same path"
        )
