"""Linear evaluation: only the last layer of a classifier is trained, on what the rest makes of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mano_op.errors import InputError


def head_of(model: nn.Module, arch: str) -> nn.Module:
    """The last layer of a classifier, its attribute ``head``.

    Raises
    ------
    InputError
        If it has none, or one without parameters.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module) or not list(head.parameters()):
        parts = [name for name, _ in model.named_children()]
        raise InputError(
            f"freeze='backbone', but {arch} has no module 'head' with parameters among {', '.join(parts)}: "
            "give the last layer that name, or freeze='none'"
        )
    return head


def freeze_backbone(model: nn.Module, arch: str) -> None:
    """Let nothing of a model be learned but its ``head``; the errors are those of `head_of`.

    Examples
    --------
    >>> model = nn.Module()
    >>> model.head, model.body = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> freeze_backbone(model, "model")
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['head.weight', 'head.bias']
    """
    head_of(model, arch)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))


@contextmanager
def only_head(model: nn.Module) -> Iterator[None]:
    """Keep all of a model but its ``head`` in evaluation mode, whatever mode it is put into.

    The Trainer puts the whole model into training mode at the start of each epoch. What draws at random, or
    keeps statistics of what it has seen, is to do neither in a backbone that is frozen.

    Examples
    --------
    >>> model = nn.Module()
    >>> model.head, model.body = nn.Dropout(), nn.Dropout()
    >>> model.forward = lambda x: (model.head.training, model.body.training)
    >>> with only_head(model.train()):
    ...     model(0)
    (True, False)
    """
    head = {id(module) for module in model.head.modules()}  # type: ignore[union-attr]

    def hold(module: nn.Module, inputs: object) -> None:
        for part in module.modules():
            if id(part) not in head:
                part.training = False

    handle = model.register_forward_pre_hook(hold)
    try:
        yield
    finally:
        handle.remove()
