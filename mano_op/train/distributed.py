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

    The group stays until the process ends: torch cannot make a second one at torchrun's addresses.

    Parameters
    ----------
    device : str
        "cuda" is the GPU of this process's number on its machine.

    Returns
    -------
    str
        The device of this process.

    Raises
    ------
    InputError
        If there are fewer GPUs than processes.

    Examples
    --------
    >>> join("cpu"), ranks()  # not started by torchrun: alone
    ('cpu', (1, 0))
    """
    started = dist.is_available() and dist.is_torchelastic_launched()
    if device == "cuda" and started:
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if there and number >= there:  # without any, what refuses a device says so
            raise InputError(
                f"device='cuda' for process {number} of this machine, which has {there} GPUs: start as many "
                "processes with torchrun --nproc-per-node as there are"
            )
        device = f"cuda:{number}" if there else device
    if started and not dist.is_initialized() and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("nccl" if device.startswith("cuda:") else "gloo")
        atexit.register(_leave)
    return device


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Return whether this process is the one that writes files and messages.

    Examples
    --------
    >>> is_first()
    True
    """
    return ranks()[1] == 0


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients over all ranks, in place.

    Examples
    --------
    >>> weight = torch.ones(1, requires_grad=True)
    >>> weight.square().backward()
    >>> sum_gradients([weight])
    >>> weight.grad
    tensor([2.])
    """
    if ranks()[0] == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    # One message in place of one for each parameter; complex numbers are sent as two real ones.
    real = [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in gradients]
    flat = torch.cat([g.reshape(-1) for g in real])
    dist.all_reduce(flat)
    for gradient, like, part in zip(gradients, real, flat.split([g.numel() for g in real]), strict=True):
        total = part.view(like.shape)
        gradient.copy_(torch.view_as_complex(total) if gradient.is_complex() else total)


def sum_numbers(*numbers: float, device: str = "cpu") -> tuple[float, ...]:
    """Return the sums over all ranks, the same on each to the last bit.

    Examples
    --------
    >>> sum_numbers(2.5, 3)
    (2.5, 3)
    """
    if ranks()[0] == 1:
        return numbers
    # In float64, which Apple's GPUs do not have; there are no process groups on them either.
    values = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return tuple(values.tolist())


def copy_from_first(model: nn.Module) -> None:
    """Give all ranks the parameters and buffers of the first.

    Machines of different kinds may draw different ones by the same seed.
    """
    if ranks()[0] == 1:
        return
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            dist.broadcast(torch.view_as_real(value) if value.is_complex() else value, 0)


def wait_for_all() -> None:
    """Wait for all ranks, so that what one has written is there for all."""
    if ranks()[0] > 1:
        dist.barrier()


def check_all_have(what: str, number: int, device: str) -> None:
    """Refuse to continue, on all ranks, if they have read different numbers."""
    together, rank = ranks()
    if together == 1:
        return
    mine = [0.0] * together
    mine[rank] = float(number)
    found = [int(value) for value in sum_numbers(*mine, device=device)]
    if len(set(found)) > 1:
        raise InputError(
            f"{what} is {found} on ranks 0 to {together - 1}: give a folder that all of them see, with the "
            "same path"
        )
