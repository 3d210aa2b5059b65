"""Several resolutions in one epoch, runs of times, and processes that read."""

import multiprocessing
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import store_of, wave_store, waves
from neuralop import Trainer
from neuralop.losses import LpLoss

from mano_op import MANO
from mano_op.data.channels import channels_of
from mano_op.data.dataset import FieldDataset, MixedDataset
from mano_op.data.layout import Variable
from mano_op.data.loaders import Reading, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid

COARSE, FINE = Grid.uniform((6, 8)), Grid.uniform((12, 10))
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FieldStore:
    path = tmp_path_factory.mktemp("stores") / "waves.zarr"
    return wave_store(path, [COARSE, FINE], {"train": 10, "test": 4}, chunk=4)


def moving(samples, grid):
    """A force, and a field at every time: sample + 100 time, plus the coordinates."""
    samples = np.asarray(samples, dtype=float)
    force = waves(samples, grid)["a"]
    at = samples[:, None] + 100 * np.asarray(TIMES)
    return {"force": force, "u": at.reshape(*at.shape, *[1] * grid.n_dim) + grid.mesh.sum(axis=0)}


@pytest.fixture(scope="module", params=[None, 2])
def moving_store(tmp_path_factory, request) -> FieldStore:
    variables = [Variable("force", "input"), Variable("u", "output", time=True)]
    path, splits = tmp_path_factory.mktemp("stores") / "moving.zarr", {"train": 7, "test": 2}
    options = {"ends": None, "chunk": 2, "times": TIMES, "chunk_times": request.param}
    return store_of(path, [COARSE, FINE], variables, moving, splits, **options)


def test_mixed_epoch_has_every_sample_at_every_resolution(store):
    train = field_loaders(store, train=Mixed([(6, 8), (12, 10)], batch_size=[4, 3]), test=[]).train
    for _ in range(2):
        seen = {COARSE.shape: [], FINE.shape: []}
        for batch in train:
            assert len(batch["x"]) <= (4 if batch["x"].shape[-2:] == (6, 8) else 3)
            seen[tuple(batch["x"].shape[-2:])].append(batch)
        for grid in (COARSE, FINE):
            x, y = (torch.cat([batch[name] for batch in seen[grid.shape]]) for name in ("x", "y"))
            fields = waves(range(10), grid)
            expected = torch.from_numpy(np.stack([fields["a"], fields["b"]], 1)).float()
            truth = torch.from_numpy(fields["u"][:, None]).float()
            order, sort = x[:, 0, 0, 0].argsort(), expected[:, 0, 0, 0].argsort()
            torch.testing.assert_close(x[order], expected[sort], rtol=0, atol=0)
            torch.testing.assert_close(y[order], truth[sort], rtol=0, atol=0)


def test_trainer_on_mixed_resolutions_matches_a_plain_loop(store):
    """Its own loop, two non-square resolutions in one epoch: the steps are those of a plain loop."""

    def model():
        torch.manual_seed(0)
        size = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "window": 2, "n_levels": 2}
        return MANO(2, 1, **size, reference_shape=(6, 8)).double()

    def loaders():
        return field_loaders(store, train=Mixed([(6, 8), (12, 10)]), test=[(12, 10)], batch_size=5, seed=1)

    trained, plain, data, repeated = model(), model(), loaders(), loaders()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = Trainer(model=trained, n_epochs=2, device="cpu", data_processor=data.processor.double())
    losses = {"training_loss": LpLoss(d=2, p=2), "eval_losses": {"l2": LpLoss(d=2, p=2)}}
    metrics = trainer.train(data.train, data.test, optimizer, schedule, **losses)

    repeated.processor.double().train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3)
    for _ in range(2):
        for batch in repeated.train:
            optimizer.zero_grad()
            sample = repeated.processor.preprocess(batch)
            out, sample = repeated.processor.postprocess(plain(sample["x"]), sample)
            LpLoss(d=2, p=2)(out, sample["y"]).backward()
            optimizer.step()
    for ours, theirs in zip(trained.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert not torch.equal(next(iter(model().parameters())), next(iter(trained.parameters())))
    (batch,) = data.test[(12, 10)]
    y, (out, _) = batch["y"].double(), data.processor.wrap(trained).eval()(**batch)
    error = ((out - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)).mean()  # in units
    torch.testing.assert_close(
        torch.as_tensor(metrics["(12, 10)_l2"]), error.detach(), rtol=1e-6, atol=0, check_dtype=False
    )


def test_mixed_data_sets_are_indexed_part_after_part(store):
    parts = [FieldDataset(store, (6, 8)), FieldDataset(store, (12, 10))]
    mixed = MixedDataset(parts)
    for index in (0, 9, 10, -1):
        part, i = (parts[0], index) if index in (0, 9) else (parts[1], index % 20 - 10)
        torch.testing.assert_close(mixed[index]["y"], part[i]["y"], rtol=0, atol=0)
    with pytest.raises(IndexError, match="there are 20"):
        mixed[20]
    with pytest.raises(InputError, match="at least one"):
        MixedDataset([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"test": "r8"}, r"test='r8'; expected a list of resolutions"),
        ({"batch_size": [2, 2]}, r"batch_size=\[2, 2\], expected a whole number"),
        ({"test_batch_size": 0}, "test_batch_size=0"),
        ({"hold_out": 0.1}, r"no option hold_out=0.1 of field_loaders: give splits=Splits\(hold_out="),
        ({"cache_bytes": 0}, r"no option cache_bytes=0 of field_loaders: give reading=Reading\(cache_bytes="),
    ],
)
def test_loader_options_that_do_not_fit_are_refused(store, options, message):
    with pytest.raises(InputError, match=message):
        field_loaders(store, **({"train": (6, 8), "test": [], "batch_size": 2} | options))
    with pytest.raises(InputError, match="start_method='fork', expected 'forkserver' or 'spawn'"):
        Reading(start_method="fork")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolutions": []}, r"resolutions=\[\], expected a list of one or more: give resolutions=\[16, 32"),
        ({"resolutions": "r8"}, r"resolutions='r8', expected a list"),
        ({"batch_size": 4}, r"batch_size=4 with .*give batch_size=\[20, 20\], or leave batch_size out"),
        ({"ratios": [0.5]}, r"ratios=\[0.5\] with .* for each resolution: give ratios=\[1, 1\]"),
        ({"batch_size": [4, 0]}, r"batch_size\[1\]=0"),
    ],
)
def test_mixed_needs_one_value_for_each_resolution(options, message):
    with pytest.raises(InputError, match=message):
        Mixed(**({"resolutions": [8, 16]} | options))


@pytest.mark.parametrize("resolution", [[6, 8], (6, 8), COARSE, "r6x8"])
def test_sequence_of_numbers_is_one_grid(store, resolution):
    loaders = field_loaders(store, train=resolution, test=[resolution], batch_size=5)
    assert {tuple(batch["x"].shape[2:]) for batch in loaders.train} == {(6, 8)}
    assert [loader.dataset.grid for loader in loaders.test.values()] == [COARSE]


def test_resolutions_share_cache_bytes(store):
    """What fits is kept whole, in the order of training and then of tests; the others share what is left."""
    coarse, fine, tests = (
        FieldDataset(store, *about, cache_bytes=0).nbytes
        for about in ([(6, 8)], [(12, 10)], [(6, 8), "test"])
    )
    assert (coarse, fine, tests) == (4 * 3 * 10 * 48, 4 * 3 * 10 * 120, 4 * 3 * 4 * 48)
    for budget, kept in (
        (coarse + fine + tests, [True, True, True]),
        (coarse + fine + tests - 1, [True, True, False]),
        (fine, [True, False, True]),
        (tests, [False, False, True]),
        (tests - 1, [False, False, False]),
    ):
        mixed, reading = Mixed([(6, 8), (12, 10)]), Reading(cache_bytes=budget)
        loaders = field_loaders(store, train=mixed, test=[(6, 8)], batch_size=5, reading=reading)
        parts = [*loaders.train.dataset.parts, loaders.test[(6, 8)].dataset]
        assert [part.cached for part in parts] == kept
        held = sum(part.nbytes for part in parts if part.cached)
        held += sum(part._chunks._budget for part in parts if not part.cached)
        assert held <= budget
        assert sum(len(batch["x"]) for batch in loaders.train) == 20


def test_streaming_holds_a_few_chunks(tmp_path):
    """An epoch of a store four times larger than the limit, by the bytes that Python and numpy hold."""
    store = wave_store(tmp_path / "large.zarr", [Grid.uniform((32, 32))], {"train": 340}, chunk=4)
    sample = 4 * 3 * 32 * 32
    loader = field_loaders(store, train=32, test=[], batch_size=4, reading=Reading(cache_bytes=0)).train
    next(iter(loader))

    def peak():
        tracemalloc.start()
        try:
            assert sum(len(batch["x"]) for batch in loader) == 340
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # Several times, since whatever else the process does in one counts too.
    assert any(4 * sample < peak() < 340 * sample // 4 for _ in range(3))


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize(("steps_in", "steps_out"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_time_steps_make_runs_of_times(moving_store, steps_in, steps_out, cache_bytes):
    data = FieldDataset(moving_store, (12, 10), time_steps=(steps_in, steps_out), cache_bytes=cache_bytes)
    n = len(TIMES) - steps_in - steps_out + 1
    assert len(data) == 7 * n
    fields = moving(range(7), FINE)
    order = np.random.default_rng(0).permutation(len(data))[:11]
    for i, sample in zip(order, data.__getitems__(order.tolist()), strict=True):
        row, start = divmod(int(i), n)
        run = fields["u"][row, start : start + steps_in + steps_out].astype(np.float32)
        x = np.concatenate([fields["force"][row][None].astype(np.float32), run[:steps_in]])
        np.testing.assert_array_equal(sample["x"], x)
        np.testing.assert_array_equal(sample["y"], run[steps_in:])
    assert data.inputs[0] == "force" and data.inputs[-1] == "u@+0" and data.outputs[0] == "u@+1"
    assert (len(data.inputs), len(data.outputs)) == (1 + steps_in, steps_out)


def test_time_steps_need_times_equally_far_apart(moving_store):
    layout = moving_store.layout
    rounded = replace(layout, times=tuple(np.float32(TIMES).astype(float).tolist()))
    assert channels_of(rounded, at=[rounded.times[1]]).outputs == ("u@t=0.1",)
    assert len(channels_of(rounded, time_steps=(1, 1)).starts) == 4
    uneven = replace(layout, times=(0.0, 0.1, 0.2, 0.4, 0.5))
    assert channels_of(uneven, at=[0.1]).outputs == ("u@t=0.1",)
    with pytest.raises(InputError, match=r"from 0\.2 to 0\.4 it is 0\.2, 0\.125 on average"):
        channels_of(uneven, time_steps=(1, 1))


def test_at_makes_single_times_outputs(moving_store):
    data = FieldDataset(moving_store, (6, 8), "test", at=[0.4, 0.1])
    assert (data.inputs, data.outputs) == (("force",), ("u@t=0.4", "u@t=0.1"))
    fields = moving([7, 8], COARSE)
    for i, sample in enumerate(data):
        np.testing.assert_array_equal(sample["x"][0], fields["force"][i].astype(np.float32))
        np.testing.assert_array_equal(sample["y"], fields["u"][i, [4, 1]].astype(np.float32))


def test_processor_has_the_statistics_of_every_channel(moving_store):
    processor = field_loaders(moving_store, train=(6, 8), test=[], batch_size=2, time_steps=(2, 2)).processor
    assert processor.inputs == ("force", "u@-1", "u@+0") and processor.outputs == ("u@+1", "u@+2")
    for label in processor.outputs:
        statistics = processor.to_dict()["outputs"][label]
        assert statistics == pytest.approx(moving_store.statistics["u"], rel=1e-6)


@pytest.mark.parametrize("moving_store", [2], indirect=True)
def test_worker_processes_give_the_same_mixed_batches(moving_store):
    """Two processes that are started afresh, and stay between epochs."""

    def loaders(workers):
        options = {"batch_size": 4, "time_steps": (2, 1), "seed": 5}
        train = Mixed([(6, 8), (12, 10)])
        return field_loaders(
            moving_store, train=train, test=[], reading=Reading(num_workers=workers), **options
        )

    alone, shared = loaders(0).train, loaders(2).train
    for batch, expected in zip([*shared, *shared], [*alone, *alone], strict=True):
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)
    assert shared.multiprocessing_context.get_start_method() in ("forkserver", "spawn")
    assert shared.persistent_workers
    assert all(part.cached for part in alone.dataset.parts)
    assert not any(part.cached for part in shared.dataset.parts)


def read_in_a_fork(data, connection):
    try:
        data[0]
    except InputError as error:
        connection.send(str(error))
    else:
        connection.send("read")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
@pytest.mark.parametrize(("cache_bytes", "said"), [(0, "was forked"), (2**30, "read")])
def test_forked_process_reads_from_memory_only(store, cache_bytes, said):
    data = FieldDataset(open_store(store.path), (6, 8), cache_bytes=cache_bytes)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=read_in_a_fork, args=(data, there))
    child.start()
    assert here.poll(30) and said in here.recv()
    child.join(30)
    assert child.exitcode == 0


class Decay(torch.nn.Module):
    """The last known u, times a factor in normalised units; notes what it was given."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.given = torch.nn.Parameter(torch.tensor(factor)), []

    def forward(self, x, **sample):
        self.given.append(x)
        return self.factor * x[:, -1:]


@pytest.mark.parametrize("steps_in", [1, 2])
def test_autoregression_of_the_trainer_feeds_outputs_back(moving_store, steps_in):
    """Against a loop in physical units."""
    loaders = field_loaders(
        moving_store, train=(6, 8), test=[(6, 8)], batch_size=2, time_steps=(steps_in, 1), rollout=3
    )
    model = Decay(0.5)
    trainer = Trainer(model=model, n_epochs=1, device="cpu", data_processor=loaders.processor)
    loader = loaders.test[(6, 8)]
    error = trainer.evaluate({"l2": LpLoss(d=2, p=2)}, loader, "r", mode="autoregression")["r_l2"]

    u, f = (moving_store.statistics[name] for name in ("u", "force"))
    expected, runs = 0.0, 0
    for batch in loader:
        known, force = batch["x"][:, 1:], batch["x"][:, :1]
        for step in range(3):
            normal = torch.cat([(force - f["mean"]) / f["std"], (known - u["mean"]) / u["std"]], dim=1)
            given = model.given.pop(0)
            torch.testing.assert_close(given, normal, rtol=1e-4, atol=1e-4)
            out = 0.5 * (known[:, -1:] - u["mean"]) + u["mean"]
            expected += float(LpLoss(d=2, p=2)(out, batch["y"][:, step : step + 1])) / 3
            known = torch.cat([known[:, 1:], out], dim=1)
        runs += len(known)
    assert not model.given
    assert float(error) == pytest.approx(expected / runs, rel=1e-4)


def test_rollout_that_does_not_fit_is_refused(moving_store):
    options = {"train": (6, 8), "test": [(6, 8)], "batch_size": 2}
    with pytest.raises(InputError, match="rollout=0"):
        field_loaders(moving_store, **options, time_steps=(1, 1), rollout=0)
    with pytest.raises(InputError, match="steps_in=0"):
        FieldDataset(moving_store, (6, 8), time_steps=(0, 1))
    two = field_loaders(moving_store, **options, time_steps=(1, 2))
    batch = next(iter(two.train))
    with pytest.raises(InputError, match="expected one step out, time_steps="):
        two.processor.preprocess(batch, step=0)
