"""The task of a training: a model, its data, its loss and its validation, for `mano_op.train.loop`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, RandomSampler

from mano_op.data.sampler import ResolutionBatchSampler, ranks
from mano_op.errors import InputError, refusing
from mano_op.machine import machine
from mano_op.options import record
from mano_op.registry import build_model, evaluating
from mano_op.train.distributed import join
from mano_op.train.options import TrainOptions
from mano_op.train.precision import check_device, check_precision

# How the state of a random number generator is read, and how it is set.
State = tuple[Callable[[], Any], Callable[[Any], object]]


class Task(ABC):
    """A model of neuraloperator's registry to train on some data.

    A subclass sets the model's constructor `options`, the `processor` between physical units and the model's,
    the `loader` of training batches, a `title` for people, and whether there are samples to validate on.
    """

    kind: ClassVar[str]
    options: dict[str, Any]
    processor: Any
    loader: DataLoader[Any]
    title: str
    validated: bool

    def __init__(self, training: TrainOptions, arch: str) -> None:
        self.training, self.arch = training, arch
        self.device = join(training.device)
        check_device(self.device)
        check_precision(training.precision, self.device)
        self.augmentation_rng = torch.Generator().manual_seed(training.seed)

    def build(self) -> nn.Module:
        """Return the model with its initial parameters; refuse one that does not fit the data."""
        torch.manual_seed(self.training.seed)
        model = build_model(self.arch, self.options)
        self.check(model)
        return model

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.training.epochs * -(-len(self.loader) // self.training.accumulate)

    def begin(self, model: nn.Module) -> None:
        """Prepare for the training of a model that is on its device."""
        self.processor.to(self.device)

    def set_mode(self, model: nn.Module) -> None:
        """Put the model into training mode."""
        model.train()

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Refuse a model that does not fit the data."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> tuple[Optimizer, LRScheduler]:
        """Return an optimiser and its schedule, which is stepped with it."""

    @abstractmethod
    def sample(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the input and the target of a training batch, augmented and normalised, on the device."""

    @abstractmethod
    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        """Return the loss, summed over samples and channels."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return "validation_error", by which the best epoch is chosen, and what else the history records."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what a run records of the data, in JSON's types."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the data from others, beside what `describe` returns."""
        return {}

    def packages(self, model: nn.Module) -> list[str]:
        """Return the names of further packages that numbers follow from."""
        return []

    def description(self, model: nn.Module) -> dict[str, Any]:
        """Return what a run records of its training: the task, the options, the data, the machine."""
        processes = ranks()[0]
        return plain(
            {
                "task": self.kind,
                **record(self.training, without=self.training.UNRECORDED),
                **self.describe(),
                **({"processes": processes} if processes > 1 else {}),
                "machine": machine(self.device, also=self.packages(model)),
            }
        )

    def generators(self) -> dict[str, State]:
        """Return every source of random numbers of a training, by name."""
        rng = self.augmentation_rng
        states: dict[str, State] = {
            "torch": (torch.get_rng_state, torch.set_rng_state),
            "augmentation": (rng.get_state, rng.set_state),
        }
        if self.device.startswith("cuda"):
            states["cuda"] = (
                lambda: torch.cuda.get_rng_state(self.device),
                lambda state: torch.cuda.set_rng_state(state, self.device),
            )
        batches = self.loader.batch_sampler
        if isinstance(batches, ResolutionBatchSampler):
            states["order"] = (lambda: batches.epoch, batches.set_epoch)
        elif isinstance(self.loader.sampler, RandomSampler):
            order = self.loader.sampler.generator
            states["order"] = (order.get_state, order.set_state)
        return states


def plain(content: Any) -> Any:
    """Return a value in JSON's types, options and numpy's numbers too, as it is read back from a file."""
    return json.loads(json.dumps(content, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return record(value)
    return value.item() if hasattr(value, "item") else str(value)


def model_options(
    arguments: Mapping[str, Any],
    derived: Mapping[str, Any],
    data: str,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a model's constructor arguments: those that follow from the data, then the others.

    Arguments that contradict the data, or are no plain values for ``run.json``, are refused; `data` names the
    data in the message.
    """
    if not isinstance(arguments, Mapping):
        raise InputError(f"options={arguments!r}, expected a mapping such as {{'n_layers': 2}}")
    for name, value in arguments.items():
        if name in derived and not _same(value, derived[name]):
            raise InputError(
                f"option {name}={value!r}, but {data} have {name}={derived[name]!r}: leave it out, it "
                "follows from them"
            )
    options = {**derived, **(defaults or {}), **arguments, **derived}
    what = f"options={options} cannot be kept in run.json"
    with refusing(what, "give plain values", TypeError, ValueError):
        json.dumps(options, allow_nan=False)
    return options


def _same(value: Any, derived: Any) -> bool:
    """Return whether an argument is what follows from the data; one flag may stand for all axes."""
    if isinstance(derived, list):
        value = [value] * len(derived) if isinstance(value, bool) else list(value)
    return bool(value == derived)


def check_output(
    model: nn.Module, arch: str, options: Mapping[str, Any], shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Refuse a model that does not map an input of one shape to an output of another."""
    try:
        with evaluating(model):
            out = model(torch.zeros(shape))
        result = f"makes an output of shape {tuple(out.shape)} of"
    except Exception as error:  # any model of the registry: whatever it raises is its answer
        out, result = None, f"fails ({type(error).__name__}: {error}) for"
    if out is None or tuple(out.shape) != expected:
        raise InputError(
            f"{arch} with {dict(options)} {result} an input of shape {shape}, expected an output of shape "
            f"{expected}: give other options, or a model for such data"
        )
