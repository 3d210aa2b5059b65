"""neuraloperator's models, by name, and the evaluation mode of any model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mano_op.errors import InputError, check_options, did_you_mean

# Values of options that neuraloperator's models have no default for, in two dimensions.
_EXAMPLES = {"n_modes": [8, 8], "hidden_channels": 32}


def model_class(arch: str) -> type[nn.Module]:
    """Return the class of a model of neuraloperator's registry."""
    # Models of `mano_op` import this module, and come with it.
    from neuralop.models.base_model import BaseModel

    models: dict[str, type[nn.Module]] = BaseModel._models
    if arch.lower() not in models:
        known = sorted(name for name in models if not name.startswith("_"))
        raise InputError(
            f"there is no model {arch!r}; neuraloperator knows {', '.join(known)}"
            f"{did_you_mean(arch.lower(), known)}"
        )
    return models[arch.lower()]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, without gradients; then each of their parts has its mode again."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def build_model(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a model of neuraloperator's registry, by its name and options.

    Examples
    --------
    >>> build_model("fno", {"in_channels": 1, "out_channels": 1, "n_mode": [8, 8]})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: fno has no option 'n_mode'; it has n_modes, in_channels, ...
    """
    cls = model_class(arch)
    known = inspect.signature(cls).parameters
    check_options(arch, options, known)
    missing = [n for n, p in known.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in missing if name not in options]:
        example = {name: _EXAMPLES.get(name, 1) for name in missing}
        raise InputError(f"{arch} needs {', '.join(missing)}: give options={example}, say")
    try:
        return cls(**options)
    except InputError:
        raise
    except Exception as error:  # models raise whatever they like
        raise InputError(
            f"{arch} cannot be built with {dict(options)} ({type(error).__name__}: {error}): it takes "
            f"{', '.join(known)}"
        ) from error
