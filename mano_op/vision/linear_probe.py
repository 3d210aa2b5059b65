"""Linear probe: train only the last layer of a classifier, on the features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mano_op.errors import InputError


def freeze_backbone(model: nn.Module, arch: str) -> None:
    """Freeze all parameters of a model but those of its attribute ``head``.

    Raises
    ------
    InputError
        If the model has no module ``head``, or one without parameters.

    Examples
    --------
    >>> model = nn.Module()
    >>> model.head, model.body = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> freeze_backbone(model, "model")
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['head.weight', 'head.bias']
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module) or not list(head.parameters()):
        children = ", ".join(name for name, _ in model.named_children())
        raise InputError(
            f"freeze='backbone', but {arch} has no module 'head' with parameters among {children}: give the "
            "last layer that name, or freeze='none'"
        )
    model.requires_grad_(False)
    head.requires_grad_(True)


@contextmanager
def only_head(model: nn.Module) -> Iterator[None]:
    """Keep all of a model but its ``head`` in evaluation mode, whatever mode it is put into.

    Training puts the whole model into training mode, but a frozen backbone must neither draw random numbers
    nor update statistics.

    Examples
    --------
    >>> model = nn.Module()
    >>> model.head, model.body = nn.Dropout(), nn.Dropout()
    >>> model.forward = lambda x: (model.head.training, model.body.training)
    >>> with only_head(model.train()):
    ...     model(0)
    (True, False)
    """

    def evaluate_backbone(module: nn.Module, inputs: object) -> None:
        head = {id(part) for part in module.head.modules()}  # type: ignore[union-attr]
        for part in module.modules():
            if id(part) not in head:
                part.training = False

    handle = model.register_forward_pre_hook(evaluate_backbone)
    try:
        yield
    finally:
        handle.remove()
