"""The error on samples that are not trained on: which they are, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mano_op.data.layout import Resolution
from mano_op.data.processor import FieldProcessor
from mano_op.data.sampler import ranks
from mano_op.data.store import FieldStore
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.train.distributed import sum_numbers


def validation_of(
    store: FieldStore,
    keys: Sequence[str],
    validate: str | float | None,
    tested: Sequence[str] | None,
    patience: int | None,
) -> dict[str, Any]:
    """What is validated on, as the run says it: which samples, at which levels, with how much patience.

    Parameters
    ----------
    store : FieldStore
    keys : sequence of str
        The levels that are trained on.
    validate : str or float, optional
        A split, or a part of the training samples.
    tested : sequence of str, optional
        The levels to validate at; `keys` if not given.
    patience : int, optional

    Returns
    -------
    dict
        "split" or "part", "resolution", and "patience" if it is given; empty if nothing is validated on.

    Raises
    ------
    InputError
        If there is no such split at a level, or it is trained on; or nothing to have patience with.
    """
    if validate is None:
        for name, value in (("patience", patience), ("validate_resolution", tested)):
            if value is not None:
                raise InputError(
                    f"{name}={value} without validate: name a split to validate on, or give the part of the "
                    "training samples to hold out, validate=0.1"
                )
        return {}
    tested = list(keys) if tested is None else list(tested)
    if isinstance(validate, str):
        if validate == "train":
            raise InputError(
                "validate='train', which is trained on: name another split, or hold out a part of it, "
                "validate=0.1"
            )
        for key in tested:
            store.layout.rows(key, validate)
        found: dict[str, Any] = {"split": validate}
    else:
        check_finite_number(zero=False, validate=validate)
        found = {"part": validate}
    if patience is not None:
        check_whole(patience=patience)
        found["patience"] = patience
    return found | {"resolution": tested}


def sample_counts(loaders: Mapping[Resolution, DataLoader[Any]]) -> dict[Resolution, int]:
    """How many samples the loader of each level has."""
    return {key: len(loader.dataset) for key, loader in loaders.items()}  # type: ignore[arg-type]


def validation_error(
    model: nn.Module,
    processor: FieldProcessor,
    loaders: Sequence[Iterable[dict[str, Tensor]]],
    loss: Callable[[Tensor, Tensor], Tensor],
    device: str = "cpu",
) -> float:
    """The mean of a loss over the samples and channels of some loaders, in the units that training has.

    The model is in evaluation mode and in single precision, as it will be used, and afterwards as it was.
    Of several ranks each takes its share of the batches, and all get the same number.

    Parameters
    ----------
    model : nn.Module
    processor : FieldProcessor
    loaders : sequence of iterable of dict
    loss : callable
        Of a prediction and the truth, summed over samples and channels.
    device : str

    Examples
    --------
    >>> unit = {"mean": 0.0, "std": 2.0}
    >>> processor = FieldProcessor({"a": unit}, {"u": unit})
    >>> batch = {"x": torch.ones(3, 1, 4), "y": torch.zeros(3, 1, 4)}
    >>> validation_error(nn.Identity(), processor, [[batch]], lambda out, y: (out - y).abs().mean(-1).sum())
    0.5
    """
    together, rank = ranks()
    were = model.training, processor.training
    model.eval()
    processor.train()  # which normalises y too
    total, terms = 0.0, 0
    with torch.no_grad():
        for loader in loaders:
            for i, batch in enumerate(loader):
                if i % together == rank:
                    sample = processor.preprocess(batch)
                    total += loss(model(sample["x"]), sample["y"]).item()
                    terms += sample["y"].shape[0] * sample["y"].shape[1]
    model.train(were[0])
    processor.train(were[1])
    total, terms = sum_numbers(total, terms, device=device)  # type: ignore[assignment]
    return total / terms
