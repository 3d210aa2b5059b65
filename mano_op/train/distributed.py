"""Training in several processes, each on a part of every batch: what they add up and agree on.

The loss is a sum over samples, so the gradient of a batch is the sum of those of its parts. That sum is
what is taken here, not the mean that ``DistributedDataParallel`` takes: a step is then that of one process
with the whole batch, also where its length counts, as in clipping. Parameters that have no gradient in a
step have none on any rank, since all are at one resolution, and stay without.
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
    """Be one of the processes that ``torchrun`` started, or that are in a process group already.

    The group stays until the process ends: torch can make no second one with the addresses that torchrun
    keeps.

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
    """Whether this process is the one that writes and speaks.

    Examples
    --------
    >>> is_first()
    True
    """
    return ranks()[1] == 0


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients of all ranks, in place; alone, nothing happens.

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
    # One message in place of one for each parameter; complex numbers go as two real ones.
    real = [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in gradients]
    flat = torch.cat([g.reshape(-1) for g in real])
    dist.all_reduce(flat)
    for gradient, like, part in zip(gradients, real, flat.split([g.numel() for g in real]), strict=True):
        total = part.view(like.shape)
        gradient.copy_(torch.view_as_complex(total) if gradient.is_complex() else total)


def sum_numbers(*numbers: float, device: str = "cpu") -> tuple[float, ...]:
    """The sums over all ranks, the same on each to the last bit.

    Examples
    --------
    >>> sum_numbers(2.5, 3)
    (2.5, 3)
    """
    if ranks()[0] == 1:
        return numbers
    # As float64, which a GPU has and Apple's has not; there is no process group there either.
    values = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return tuple(values.tolist())


def copy_from_first(model: nn.Module) -> None:
    """Give all ranks the parameters and buffers of the first.

    The same seed gives the same ones on machines of one kind; on others they would differ, and nothing
    would say so.
    """
    if ranks()[0] == 1:
        return
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            dist.broadcast(torch.view_as_real(value) if value.is_complex() else value, 0)


def wait_for_all() -> None:
    """Go on when all ranks have come here, so that what one has written is there for all."""
    if ranks()[0] > 1:
        dist.barrier()


def check_all_have(what: str, number: int, device: str) -> None:
    """Refuse to go on where ranks have read different things.

    Raises
    ------
    InputError
        On all ranks.
    """
    together, rank = ranks()
    if together == 1:
        return
    mine = [0.0] * together
    mine[rank] = float(number)
    found = [int(one) for one in sum_numbers(*mine, device=device)]
    if len(set(found)) > 1:
        raise InputError(
            f"{what} is {found} on ranks 0 to {together - 1}: give a folder that all of them see, with the "
            "same path"
        )
