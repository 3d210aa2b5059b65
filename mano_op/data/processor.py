"""Between fields in their units and the numbers near one that a network works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from neuralop.data.transforms.data_processors import DataProcessor
from torch import Tensor, nn

from mano_op.data.store import FieldStore
from mano_op.errors import InputError

Statistics = Mapping[str, Mapping[str, float]]


class FieldProcessor(DataProcessor):
    r"""Normalise the fields on their way into a network and undo it on the way out.

    Each variable c has one mean and one standard deviation, whatever the resolution,

    .. math:: \hat x_c = (x_c - \mu_c) / \sigma_c, \qquad y_c = \sigma_c \hat y_c + \mu_c,

    so that a field means the same to the network on every grid. A variable that is constant
    (:math:`\sigma_c = 0`) is only shifted, to 0 and back.

    It follows the protocol of neuraloperator's ``DefaultDataProcessor``: ``x`` is always normalised; in
    training ``y`` is too, and the loss compares normalised fields; in evaluation ``y`` is left as it
    is and the output is brought back to units. Unlike there, `train` and `eval` return the processor,
    the caller's dictionary is not changed, and all of its tensors move to the processor's device.

    Parameters
    ----------
    inputs, outputs : mapping of str to mapping
        ``{"mean": ..., "std": ...}`` of each variable, in the order of the channels.

    Raises
    ------
    InputError
        If a mean or standard deviation is not finite, or the latter is negative.

    Examples
    --------
    >>> processor = FieldProcessor({"a": {"mean": 1.0, "std": 2.0}}, {"u": {"mean": 0.0, "std": 10.0}}).eval()
    >>> sample = processor.preprocess({"x": torch.full((1, 1, 4), 5.0)})
    >>> sample["x"][0, 0]
    tensor([2., 2., 2., 2.])
    >>> output, _ = processor.postprocess(sample["x"], sample)
    >>> output[0, 0]
    tensor([20., 20., 20., 20.])
    """

    def __init__(self, inputs: Statistics, outputs: Statistics) -> None:
        super().__init__()
        self.model: nn.Module | None = None
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        for role, statistics in (("in", inputs), ("out", outputs)):
            mean = torch.tensor([float(one["mean"]) for one in statistics.values()])
            std = torch.tensor([float(one["std"]) for one in statistics.values()])
            if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
                raise InputError(f"statistics {statistics}: expected finite means and std of at least 0")
            self.register_buffer(f"{role}_mean", mean)
            self.register_buffer(f"{role}_std", std)

    @classmethod
    def from_store(cls, store: FieldStore, split: str = "train") -> FieldProcessor:
        """The processor with the statistics of a split of a store: those it has of "train", or new ones."""
        if split == "train" and not store.statistics:
            raise InputError(
                f"{store.path} has no split 'train', so no statistics: take the processor of the store that "
                "the model is trained on"
            )
        statistics = store.statistics if split == "train" else store.statistics_of(split)["variables"]
        return cls(
            {name: statistics[name] for name in store.inputs},
            {name: statistics[name] for name in store.outputs},
        )

    @property
    def device(self) -> torch.device:
        """Where samples are moved to."""
        return self.in_mean.device

    def to(self, *args: Any, **kwargs: Any) -> FieldProcessor:
        """Move the statistics, and the model if there is one; as `torch.nn.Module.to`."""
        return nn.Module.to(self, *args, **kwargs)

    def train(self, mode: bool = True) -> FieldProcessor:
        """Switch to training, or back; the model too, if there is one."""
        return nn.Module.train(self, mode)

    def eval(self) -> FieldProcessor:
        """Switch to evaluation."""
        return self.train(False)

    def preprocess(
        self, data_dict: Mapping[str, Any], batched: bool = True, step: int | None = None
    ) -> dict[str, Any]:
        """A sample or batch as the model and the loss take it.

        Parameters
        ----------
        data_dict : mapping
            ``x`` of shape ``(batch, in_channels, *grid)``; ``y`` likewise, if there is one.
        batched : bool
            Whether there is the dimension of the batch.
        step : int, optional
            Of a rollout; every step is treated alike.
        """
        data = {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in data_dict.items()
        }
        x = data["x"]
        mean, scale = self._statistics("in", x, batched)
        data["x"] = (x - mean) / scale
        if "y" in data:
            mean, scale = self._statistics("out", data["y"], batched)
            if self.training:
                data["y"] = (data["y"] - mean) / scale
        return data

    def postprocess(
        self, output: Tensor, data_dict: dict[str, Any], step: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The model's output as the loss takes it: in units, except in training."""
        mean, scale = self._statistics("out", output, batched=True)
        if not self.training:
            output = output * scale + mean
        return output, data_dict

    def wrap(self, model: nn.Module) -> FieldProcessor:
        """Put a model between `preprocess` and `postprocess`, to be called through `forward`."""
        self.model = model
        return self

    def forward(self, **data_dict: Any) -> tuple[Tensor, dict[str, Any]]:
        """Normalise, call the wrapped model with all but ``y``, and undo it; see `postprocess`.

        Examples
        --------
        >>> unit = {"mean": 0.0, "std": 1.0}
        >>> processor = FieldProcessor({"a": unit}, {"u": unit}).wrap(torch.nn.Identity()).eval()
        >>> processor(x=torch.ones(1, 1, 2))[0]
        tensor([[[1., 1.]]])
        """
        if self.model is None:
            raise InputError("the processor has no model to call; give it one with `processor.wrap(model)`")
        data = self.preprocess(data_dict)
        rest = {key: value for key, value in data.items() if key not in ("x", "y")}
        return self.postprocess(self.model(data["x"], **rest), data)

    def _statistics(self, role: str, field: Tensor, batched: bool) -> tuple[Tensor, Tensor]:
        """Mean and scale of each channel, shaped to broadcast against a field."""
        names = self.inputs if role == "in" else self.outputs
        channels = field.shape[1 if batched else 0]
        if channels != len(names):
            raise InputError(
                f"{'x' if role == 'in' else 'y'} of shape {tuple(field.shape)} with batched={batched} has "
                f"{channels} channels; expected {len(names)}: {', '.join(names)}"
            )
        shape = (-1, *[1] * (field.ndim - (2 if batched else 1)))
        mean, std = getattr(self, f"{role}_mean"), getattr(self, f"{role}_std")
        return mean.view(shape), torch.where(std == 0, 1.0, std).view(shape)

    def get_extra_state(self) -> dict[str, list[str]]:
        """Names of the channels, which belong to the numbers in a state dictionary."""
        return {"inputs": list(self.inputs), "outputs": list(self.outputs)}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        """Refuse numbers that belong to other channels."""
        if state != self.get_extra_state():
            raise InputError(f"the state is of channels {state}, the processor of {self.get_extra_state()}")

    def to_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        """All of it in JSON types; `from_dict` makes an equal one."""
        return {
            "inputs": self._named(self.inputs, self.in_mean, self.in_std),
            "outputs": self._named(self.outputs, self.out_mean, self.out_std),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Statistics]) -> FieldProcessor:
        """The processor that `to_dict` wrote down."""
        return cls(state["inputs"], state["outputs"])

    @staticmethod
    def _named(names: tuple[str, ...], mean: Tensor, std: Tensor) -> dict[str, dict[str, float]]:
        pairs = zip(names, mean.tolist(), std.tolist(), strict=True)
        return {name: {"mean": m, "std": s} for name, m, s in pairs}
