"""Muon and AdamW as one optimiser: each parameter steps as its own would, by one schedule."""

import copy
from itertools import pairwise

import pytest
import torch
from test_multipole import draw
from torch import nn

from mano_op.errors import InputError
from mano_op.models.mano import MANO
from mano_op.train.optimizer import MUON_RATE, MuonAdamW, orthogonal_factor, warm_up_and_cosine


def build():
    torch.manual_seed(0)
    return MANO(1, 1, hidden_channels=16, n_layers=1, n_heads=2, n_levels=2)


def steps(model, optimizer, count=3, schedule=None):
    for i in range(count):
        optimizer.zero_grad()
        model(draw(2, 1, 8, 8, seed=i).float()).square().sum().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def is_hidden(name, parameter):
    return parameter.ndim == 2 and min(parameter.shape) >= 8 and name.split(".")[0] == "blocks"


def test_each_parameter_steps_as_by_its_own_optimiser(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda t: t.clone())  # in which torch's Muon has two digits
    together, apart = build(), build()
    factor = warm_up_and_cosine(4)
    optimizer = MuonAdamW(together, 1e-2, 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    named = list(apart.named_parameters())
    parts = [
        torch.optim.AdamW([p for n, p in named if not is_hidden(n, p)], lr=1e-2, weight_decay=1e-3),
        torch.optim.Muon([p for n, p in named if is_hidden(n, p)], lr=MUON_RATE * 1e-2, weight_decay=1e-3),
    ]
    for i in range(3):
        steps(together, optimizer, 1, schedule)
        apart.zero_grad()
        apart(draw(2, 1, 8, 8, seed=0).float()).square().sum().backward()
        for part, rate in zip(parts, (1e-2, MUON_RATE * 1e-2), strict=True):
            part.param_groups[0]["lr"] = rate * factor(i)
            part.step()
        for (name, its), p in zip(named, together.parameters(), strict=True):
            torch.testing.assert_close(p, its, rtol=1e-4, atol=1e-5 if is_hidden(name, p) else 1e-7)
        apart.load_state_dict(together.state_dict())


@pytest.mark.parametrize("shape", [(4, 24, 8), (3, 8, 24), (2, 16, 16)])
def test_orthogonal_factors_keep_directions_and_level_singular_values(shape):
    u, values, v = torch.linalg.svd(draw(*shape), full_matrices=False)
    values = values / torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    for _ in range(5):  # the same polynomial of the singular values
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    factor = orthogonal_factor(draw(*shape))
    torch.testing.assert_close(factor, u @ torch.diag_embed(values) @ v)
    assert values.min() > 0.6 and values.max() < 1.3


def test_rates_of_low_modes_fall_with_their_channels():
    models = [MANO(1, 1, hidden_channels=width, n_layers=2, n_modes=2) for width in (16, 32, 64)]
    groups = [MuonAdamW(model, 1e-2, 0.0).param_groups for model in models]
    rates = [{len(group["params"]): group["lr"] for group in of_model} for of_model in groups]
    assert rates[0] == rates[1] and sorted(rates[1].values()) == [1e-2, MUON_RATE * 1e-2]
    assert rates[2].pop(1) == 5e-3 and sorted(rates[2].values()) == [1e-2, MUON_RATE * 1e-2]


def test_optimizer_resumes_from_its_state():
    whole, halves = build(), build()
    optimizer = MuonAdamW(whole, 1e-2, 0.0)
    steps(whole, optimizer, 2)
    halves.load_state_dict(whole.state_dict())
    resumed = MuonAdamW(halves, 5e-2, 0.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(whole, optimizer, 2)
    steps(halves, resumed, 2)
    assert all(map(torch.equal, whole.parameters(), halves.parameters()))


def test_schedule_of_muon_rises_and_falls():
    factor = warm_up_and_cosine(30)
    values = [factor(epoch) for epoch in range(30)]
    assert values[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(a > b for a, b in pairwise(values[2:])) and 0 < values[-1] < 0.01
    assert factor(31) == pytest.approx(0, abs=1e-12)


def test_models_without_matrices_are_refused():
    with pytest.raises(InputError, match=r"no matrix of 8 x 8 between .* of Conv2d"):
        MuonAdamW(nn.Conv2d(1, 8, 3), 1e-2, 0.0)


def test_a_copied_optimizer_steps_the_copied_model():
    model = MANO(1, 1, hidden_channels=16, n_layers=1, n_heads=2)
    copied, optimizer = copy.deepcopy((model, MuonAdamW(model, 1e-2, 0.0)))
    before = copied.lifting.weight.detach().clone()
    copied(torch.randn(1, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(copied.lifting.weight, before) and torch.equal(model.lifting.weight, before)


def test_a_later_group_of_parameters_is_refused():
    optimizer = MuonAdamW(MANO(1, 1, hidden_channels=16, n_layers=1, n_heads=2), 1e-2, 0.0)
    with pytest.raises(InputError, match="no further group of parameters: build it anew"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(16, 16))]})
