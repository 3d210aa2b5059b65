"""Normalisation of fields, and its inverse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from neuralop.data.transforms.data_processors import DataProcessor
from torch import Tensor, nn

from mano_op.data.channels import Channels, channels_of
from mano_op.data.guards import check_has, check_some_of
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.labels import variable_of, varies_in_time

# The transforms of `mano_op.data.transforms` for tensors, and their inverses.
_FORWARD = {"log": torch.log, "asinh": torch.asinh}
_INVERSE = {"log": torch.exp, "asinh": torch.sinh}

Statistics = Mapping[str, Mapping[str, Any]]


class Processor(DataProcessor):
    """A data processor of neuraloperator whose `to`, `train` and `eval` return it, as those of torch do."""

    to, train, eval = nn.Module.to, nn.Module.train, nn.Module.eval

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = None

    def _moved(self, data_dict: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in data_dict.items()}

    def forward(self, **data_dict: Any) -> tuple[Tensor, dict[str, Any]]:
        """Call the model given to `wrap` with all of a preprocessed sample but ``y``; see `postprocess`.

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


class FieldProcessor(Processor):
    r"""Normalise fields on their way into a network and undo it on the way out.

    Each variable c has one mean and standard deviation at all resolutions, of :math:`f(x_c)`,

    .. math:: \hat x_c = (f(x_c) - \mu_c) / \sigma_c, \qquad y_c = f^{-1}(\sigma_c \hat y_c + \mu_c).

    A constant variable (:math:`\sigma_c = 0`) is only shifted.

    Follows neuraloperator's ``DefaultDataProcessor``: ``x`` is always normalised, ``y`` in training; in
    evaluation the output is brought back to units. In the Trainer's mode "autoregression", `preprocess` makes
    each step's sample out of the last output. Dictionaries of callers are not changed.

    Parameters
    ----------
    inputs, outputs : mapping of str to mapping
        ``{"mean": ..., "std": ...}`` of each channel, in order, finite and the latter not negative; and
        "transform", one of `mano_op.data.transforms`, where it has one.

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
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._transforms: dict[str, tuple[str | None, ...]] = {}
        self._known: Tensor | None = None  # in a rollout, the inputs of the next step, in units,
        self._ahead: Tensor | None = None  # and the truth of all steps
        for role, statistics in (("in", inputs), ("out", outputs)):
            channels = statistics.values()
            mean, std = (
                torch.tensor([float(numbers[what]) for numbers in channels]) for what in ("mean", "std")
            )
            self._transforms[role] = names = tuple(numbers.get("transform") or None for numbers in channels)
            check_some_of("transforms", filter(None, names), _FORWARD)
            if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
                raise InputError(f"statistics {statistics}: expected finite means and std of at least 0")
            self.register_buffer(f"{role}_mean", mean)
            self.register_buffer(f"{role}_std", std)

    @classmethod
    def from_store(
        cls,
        store: FieldStore,
        split: str = "train",
        channels: Channels | None = None,
        transforms: Mapping[str, str] | None = None,
    ) -> FieldProcessor:
        """Make the processor with the statistics of a split of a store.

        `channels` are those of the samples, where fields vary in time. With `transforms` of variables,
        ``{"permeability": "log"}``, the statistics are taken anew.
        """
        remedy = "; take the processor of the store that the model is trained on"
        check_has(store.path, "split", [split], store.splits, remedy)
        statistics: Statistics = store.statistics
        if split != "train" or transforms:
            statistics = store.statistics_of(split, transforms)["variables"]
        remedy = "; finish the store, or restore it"
        check_has(store.path, "statistics of", store.layout.named(), statistics, remedy)
        channels = channels_of(store.layout) if channels is None else channels
        return cls(
            {channel.label: statistics[channel.variable] for channel in channels.x},
            {channel.label: statistics[channel.variable] for channel in channels.y},
        )

    @property
    def device(self) -> torch.device:
        """Device that samples are moved to."""
        return self.in_mean.device

    def preprocess(
        self, data_dict: Mapping[str, Any], batched: bool = True, step: int | None = None
    ) -> dict[str, Any]:
        """Return a sample or batch as the model and the loss take it.

        Parameters
        ----------
        data_dict : mapping
            ``x`` of shape ``(batch, in_channels, *grid)``; perhaps ``y`` likewise.
        batched : bool
            Whether tensors have the dimension of the batch.
        step : int, optional
            Of a rollout, in order from 0; ``y`` has the channels of all steps. Returns None after the last.
        """
        if step is not None:
            data_dict = self._step(data_dict, step)
            if not data_dict:
                return None  # type: ignore[return-value]  # tells the Trainer that a rollout is over
        data = self._moved(data_dict, self.device)
        data["x"] = self._normal("in", data["x"], batched)
        if "y" in data and self.training:
            data["y"] = self._normal("out", data["y"], batched)
        elif "y" in data:
            self._check_channels("out", data["y"], batched)
        return data

    def _step(self, data_dict: Mapping[str, Any], step: int) -> Mapping[str, Any]:
        """Make the sample of one step of a rollout; empty after the last."""
        n = len(self.outputs)
        if step == 0:
            self.check_rollout()
            self._known, self._ahead = (data_dict[name].to(self.device) for name in ("x", "y"))
            if self._ahead.shape[1] % n:
                self._check_channels("out", self._ahead, batched=True)
        if self._known is None or self._ahead is None:
            raise InputError(f"step={step} without a step 0; a rollout begins there")
        later = self._ahead[:, step * n : (step + 1) * n]
        return {**data_dict, "x": self._known, "y": later} if later.shape[1] else {}

    def check_rollout(self) -> None:
        """Refuse a rollout in which a step's output is not all that changes in the next input."""
        variables = [variable_of(label) for label in self.outputs]
        known = [variable_of(label) for label in self.inputs if varies_in_time(label)]
        single = all(label.endswith("@+1") for label in self.outputs)
        if not single or known[len(known) - len(variables) :] != variables or set(known) != set(variables):
            raise InputError(
                f"a rollout from {list(self.inputs)} to {list(self.outputs)}; expected one step out, "
                "time_steps=(steps_in, 1), of all variables that vary in time"
            )

    def next_known(self, known: Tensor, later: Tensor) -> Tensor:
        """Make the input of the next step: drop the first known time, append the output's.

        Both are in units, ``(batch, in_channels, *grid)`` and ``(batch, out_channels, *grid)``.

        Examples
        --------
        >>> unit = {"mean": 0.0, "std": 1.0}
        >>> processor = FieldProcessor({"force": unit, "w@-1": unit, "w@+0": unit}, {"w@+1": unit})
        >>> processor.next_known(torch.tensor([[[9.0], [1.0], [2.0]]]), torch.tensor([[[3.0]]])).flatten()
        tensor([9., 2., 3.])
        """
        steady = sum(not varies_in_time(label) for label in self.inputs)
        return torch.cat([known[:, :steady], known[:, steady + len(self.outputs) :], later], dim=1)

    def advance(self, model: nn.Module, known: Tensor, **rest: Any) -> Tensor:
        """Make the input of the next step of a rollout by a model, of this one's, in units.

        `rest` are further arguments of the model, such as ``coordinates``.

        Examples
        --------
        >>> unit = {"mean": 1.0, "std": 2.0}
        >>> processor = FieldProcessor({"w@+0": unit}, {"w@+1": unit})
        >>> processor.advance(torch.nn.Identity(), torch.tensor([[[3.0, 5.0]]]))
        tensor([[[3., 5.]]])
        """
        data = self.preprocess({**rest, "x": known})
        return self.next_known(known, self._in_units(model(data.pop("x"), **data)))

    def postprocess(
        self, output: Tensor, data_dict: dict[str, Any], step: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the model's output as the loss takes it: in units, except in training."""
        self._check_channels("out", output, batched=True)
        known = self._known if step is not None else None
        in_units = output if self.training and known is None else self._in_units(output)
        if known is not None:
            self._known = self.next_known(known, in_units)
        return (output if self.training else in_units), data_dict

    def _normal(self, role: str, field: Tensor, batched: bool) -> Tensor:
        self._check_channels(role, field, batched)
        dim = 1 if batched else 0
        mean, scale = self._statistics(role, field.ndim - 1 - dim)
        return (self._apply_each(_FORWARD, role, field, dim) - mean) / scale

    def _in_units(self, output: Tensor) -> Tensor:
        mean, scale = self._statistics("out", output.ndim - 2)
        return self._apply_each(_INVERSE, "out", output * scale + mean, 1)

    def _apply_each(self, functions: Mapping[str, Any], role: str, field: Tensor, dim: int) -> Tensor:
        names = self._transforms[role]
        if not any(names):
            return field
        channels = zip(names, field.unbind(dim), strict=True)
        return torch.stack([functions[name](channel) if name else channel for name, channel in channels], dim)

    def _check_channels(self, role: str, field: Tensor, batched: bool) -> None:
        names = self.inputs if role == "in" else self.outputs
        channels = field.shape[1 if batched else 0]
        if channels != len(names):
            raise InputError(
                f"{'x' if role == 'in' else 'y'} of shape {tuple(field.shape)} with batched={batched} has "
                f"{channels} channels; expected {len(names)}: {', '.join(names)}"
            )

    def _statistics(self, role: str, n_dim: int) -> tuple[Tensor, Tensor]:
        mean, std = (getattr(self, f"{role}_{what}").view(-1, *[1] * n_dim) for what in ("mean", "std"))
        return mean, torch.where(std == 0, 1.0, std)

    def get_extra_state(self) -> dict[str, Any]:
        """Return names of the channels and transforms."""
        state: dict[str, Any] = {"inputs": list(self.inputs), "outputs": list(self.outputs)}
        if any(map(any, self._transforms.values())):
            state["transforms"] = {role: list(names) for role, names in self._transforms.items()}
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse numbers that belong to other channels."""
        if state != self.get_extra_state():
            raise InputError(f"the state is of channels {state}, the processor of {self.get_extra_state()}")

    def to_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return all of it in JSON types, for `from_dict`."""
        statistics = {}
        for role in ("in", "out"):
            means, stds = (getattr(self, f"{role}_{what}").tolist() for what in ("mean", "std"))
            rows = zip(getattr(self, f"{role}puts"), means, stds, self._transforms[role], strict=True)
            statistics[f"{role}puts"] = {
                label: {"mean": mean, "std": std} | ({"transform": name} if name else {})
                for label, mean, std, name in rows
            }
        return statistics

    @classmethod
    def from_dict(cls, state: Mapping[str, Statistics]) -> FieldProcessor:
        """Make the processor that `to_dict` wrote down."""
        return cls(state["inputs"], state["outputs"])
