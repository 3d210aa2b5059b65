r"""Perturbed inputs in training, as those of a rollout are: noise, and the model's own steps.

A model that steps a field in time is trained on true fields, and in a rollout takes its own, whose errors may
grow from step to step. Two remedies train the step from :math:`u^k + \varepsilon` to the true
:math:`u^{k+1}` as well (Brandstetter et al. [1]_, equation 7): noise, :math:`\varepsilon \sim N(0, \sigma^2)`
at each point (Sanchez-Gonzalez et al. [2]_), and the "pushforward trick",
:math:`u^k + \varepsilon = A(u^{k-1})`, one or several steps A of the model, without their gradient.

References
----------
.. [1] Brandstetter, Worrall, Welling, "Message Passing Neural PDE Solvers", ICLR 2022, arXiv:2202.03376,
   section 3.1.
.. [2] Sanchez-Gonzalez et al., "Learning to Simulate Complex Physics with Graph Networks", ICML 2020,
   arXiv:2002.09405.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mano_op.data.processor import FieldProcessor, Processor
from mano_op.data.sampler import ranks
from mano_op.errors import InputError
from mano_op.labels import varies_in_time
from mano_op.options import NonNegative, Seed, Whole, checked


def check_perturbation(processor: FieldProcessor, noise: float, pushforward: int) -> None:
    """Refuse noise on inputs none of which varies in time, and steps that do not make the next input."""
    if noise and not any(map(varies_in_time, processor.inputs)):
        raise InputError(
            f"noise={noise} on the inputs {', '.join(processor.inputs)}, none of which varies in time: it is "
            "for models that step on from known times, time_steps=(steps_in, steps_out)"
        )
    if pushforward:
        try:
            processor.check_rollout()
        except InputError as error:
            raise InputError(f"pushforward={pushforward} needs what a rollout needs: {error}") from error


class PerturbedInputs(Processor):
    r"""A data processor that, in training, gives the model inputs as they are in a rollout.

    In evaluation it is `processor`. In training the model first steps the n-th sample on :math:`d_n` times,
    without gradients: the input becomes its own field of that time, ``y`` the truth of the time after.
    :math:`d_n` is uniform on :math:`0, \dots, p`, p being `pushforward`: if all were stepped on, only
    :math:`A(A(u))` would be learned. The mean loss is

    .. math:: \frac{1}{p + 1} \sum_{d=0}^{p} L\bigl(A(A^d(u^k)), u^{k+d+1}\bigr),

    with gradients of the outer A alone. (The code of Brandstetter et al. draws d for each batch.)

    Then :math:`\sigma \epsilon`, with :math:`\epsilon \sim N(0, 1)` at each point and channel, is added to
    the normalised inputs that vary in time; the others are exact in a rollout too.

    Draws for the n-th sample follow from `seed` and n alone, whatever the batches, processes and the device.

    Parameters
    ----------
    processor : FieldProcessor
        Of the model, for one step.
    model : nn.Module
        The trained model, which is called in its mode, and outside of the Trainer's autocast.
    noise : float
        :math:`\sigma`, in standard deviations of each input.
    pushforward : int
        The most steps that the model takes first. Samples need the truth of as many more times:
        ``field_loaders(..., time_steps=(steps_in, 1), pushforward=p)``.
    seed : int

    Attributes
    ----------
    seen : int
        Training samples so far, of all processes; a resumed training sets it.

    Examples
    --------
    A model that doubles a field: some samples are stepped from the true 1 to 2, with the truth of the time
    after.

    >>> unit = {"mean": 0.0, "std": 1.0}
    >>> class Double(nn.Module):
    ...     def forward(self, x, **sample):
    ...         return 2 * x
    >>> processor = FieldProcessor({"w@+0": unit}, {"w@+1": unit})
    >>> perturbed = PerturbedInputs(processor, Double(), pushforward=1).train()
    >>> batch = {"x": torch.ones(4, 1, 1), "y": torch.tensor([[[10.0], [20.0]]]).expand(4, 2, 1)}
    >>> sample = perturbed.preprocess(batch)
    >>> sample["x"].flatten().tolist(), sample["y"].flatten().tolist()
    ([1.0, 1.0, 2.0, 2.0], [10.0, 10.0, 20.0, 20.0])

    With neuraloperator's Trainer: ``Trainer(model=model, data_processor=perturbed, ...)``.
    """

    @checked
    def __init__(
        self,
        processor: FieldProcessor,
        model: nn.Module,
        *,
        noise: NonNegative = 0.0,
        pushforward: Whole = 0,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        check_perturbation(processor, noise, pushforward)
        self.processor, self.model = processor, model
        self.noise, self.pushforward, self.seed = noise, pushforward, seed
        self.seen = 0

    @property
    def device(self) -> torch.device:
        """The device of the samples."""
        return self.processor.device

    def preprocess(
        self, data_dict: Mapping[str, Any], batched: bool = True, step: int | None = None
    ) -> dict[str, Any]:
        """Return a batch as the model and the loss take it; see `FieldProcessor.preprocess`."""
        if not self.training:
            return self.processor.preprocess(data_dict, batched, step)
        if not batched or step is not None:
            raise InputError(
                f"batched={batched}, step={step} in training, expected a batch, and no rollout: call eval()"
            )
        data = self._moved(data_dict, self.device)
        n_ranks, rank = ranks()
        n = len(data["x"])
        # Streams apart from those of samplers.
        keys = [(2, self.seen + rank + n_ranks * i) for i in range(n)]
        draws = [np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key)) for key in keys]
        self.seen += n_ranks * n
        if self.pushforward:
            steps = torch.tensor([int(draw.integers(self.pushforward + 1)) for draw in draws])
            data = self._pushed(data, steps.to(self.device))
        data = self.processor.preprocess(data)
        if self.noise:
            data["x"] = data["x"] + self._noise_like(data["x"], draws)
        return data

    def postprocess(
        self, output: Tensor, data_dict: dict[str, Any], step: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the model's output as the loss takes it; see `FieldProcessor.postprocess`."""
        return self.processor.postprocess(output, data_dict, step)

    def _pushed(self, data: dict[str, Any], steps: Tensor) -> dict[str, Any]:
        """Return each sample after some steps of the model, with the truth of the time after."""
        n, times = len(self.processor.outputs), self.pushforward + 1
        x, y = data["x"].clone(), data["y"]
        if y.shape[1] != n * times:
            raise InputError(
                f"y of shape {tuple(y.shape)} with pushforward={self.pushforward}; expected {n * times} "
                f"channels, {', '.join(self.processor.outputs)} of {times} times: "
                f"field_loaders(..., pushforward={self.pushforward})"
            )
        rest = {name: data[name] for name in data.keys() - {"x", "y"}}
        with torch.no_grad():
            for step in range(self.pushforward):
                rows = (steps > step).nonzero().flatten()
                if len(rows) == 0:
                    break
                others = {
                    name: value[rows] if isinstance(value, Tensor) and value.ndim else value
                    for name, value in rest.items()
                }
                x[rows] = self.processor.advance(self.model, x[rows], **others)
        rows = torch.arange(len(x), device=x.device)
        return {**data, "x": x, "y": y.unflatten(1, (times, n))[rows, steps]}

    def _noise_like(self, x: Tensor, draws: list[np.random.Generator]) -> Tensor:
        """Return noise for the inputs that vary in time, none for those that are constant."""
        drawn = np.stack([draw.standard_normal(tuple(x.shape[1:]), dtype=np.float32) for draw in draws])
        varies = torch.tensor(list(map(varies_in_time, self.processor.inputs)), device=x.device)
        scale = self.noise * (varies & (self.processor.in_std > 0)).to(x.dtype)
        return scale.view(-1, *[1] * (x.ndim - 2)) * torch.from_numpy(drawn).to(x)
