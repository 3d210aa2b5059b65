"""Linear probe: train only the last layer of a classifier, on the features of a frozen backbone."""

from __future__ import annotations

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


def train_head(model: nn.Module) -> None:
    """Put the ``head`` of a model into training mode, and all else into evaluation mode.

    A frozen backbone then draws no random numbers, and updates no statistics.

    Examples
    --------
    >>> model = nn.Module()
    >>> model.head, model.body = nn.Dropout(), nn.Dropout()
    >>> train_head(model)
    >>> model.head.training, model.body.training
    (True, False)
    """
    model.eval()
    model.get_submodule("head").train()
