"""The Well: one file, read by its own package and by the importer, is one set of samples to train on."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from neuralop import LpLoss, Trainer
from torch.utils.data import ConcatDataset, DataLoader

from mano_op import MANO, InputError
from mano_op.data.dataset import FieldDataset
from mano_op.data.importers import import_the_well
from mano_op.data.processor import FieldProcessor
from mano_op.data.sampler import ResolutionBatchSampler
from mano_op.data.well import WellSamples
from mano_op.grid import Grid

STEPS = 6
NAMES = ("log_r", "y")  # an axis may have the mark between a field and its component in its name
DOMAIN = {"log_r": (0.0, 2.0), "y": (0.0, 1.0)}


def write(path, n, shape, seed=0):
    """A file of the published format; where a field does not vary, an axis of one, as its reader needs it."""
    random, (rows, columns) = np.random.default_rng(seed), shape
    grid = Grid.uniform(shape, registration="cell", names=NAMES, domain=list(DOMAIN.values()))
    fields = {  # not in the order of the alphabet
        "t0_fields": {
            "pressure": ((n, STEPS, rows, columns), (True, True), (True, True)),
            "density": ((n, STEPS, rows, columns), (True, True), (True, True)),
            "porosity": ((n, rows, columns), (True, False), (True, True)),
            "height": ((rows, 1), (False, False), (True, False)),
        },
        "t1_fields": {"velocity": ((n, STEPS, rows, columns, 2), (True, True), (True, True))},
        "t2_fields": {"stress": ((n, STEPS, rows, columns, 2, 2), (True, True), (True, True))},
    }
    with h5py.File(path, "w") as file:
        file.attrs.update(dataset_name="made", grid_type="cartesian", n_spatial_dims=2, n_trajectories=n)
        file.attrs["simulation_parameters"] = []
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = list(NAMES)
        times = np.arange(STEPS, dtype=np.float32) / 2
        for name, values in {"time": times, **{axis.name: axis.points for axis in grid}}.items():
            dimensions[name] = np.float32(values)
            dimensions[name].attrs.update(sample_varying=False, time_varying=False)
        for axis, kind in zip(grid, ("WALL", "PERIODIC"), strict=True):
            ends = file.create_group(f"boundary_conditions/{axis.name}")
            ends.attrs.update(bc_type=kind, associated_dims=[axis.name], associated_fields=[])
            ends["mask"] = np.arange(axis.n) % (axis.n - 1) == 0
        file.create_group("scalars").attrs["field_names"] = ["viscosity"]
        file["scalars/viscosity"] = np.float32(0.1)
        file["scalars/viscosity"].attrs.update(sample_varying=False, time_varying=False)
        for group, datasets in fields.items():
            file.create_group(group).attrs["field_names"] = list(datasets)
            for number, (name, (size, (sample, time), along)) in enumerate(datasets.items()):
                values = (10 * number + random.normal(size=size)).astype(np.float32)
                node = file[group].create_dataset(name, data=values)
                node.attrs.update(sample_varying=sample, time_varying=time, dim_varying=along)
    return path


class Published:
    """What is used of a WellDataset, out of the same file by the published description of both."""

    use_normalization, max_rollout_steps = False, 100
    core_field_names = ("pressure", "density", "velocity", "stress")
    core_constant_field_names = ("porosity", "height")
    metadata = SimpleNamespace(
        n_spatial_dims=2,
        field_names={
            0: ["pressure", "density"],
            1: [f"velocity_{a}" for a in NAMES],
            2: [f"stress_{a}{b}" for a in NAMES for b in NAMES],
        },
        constant_field_names={0: ["porosity", "height"], 1: [], 2: []},
    )

    def __init__(self, path, n_steps_input, n_steps_output):
        (file,) = path.glob("*.hdf5")
        self.n_steps_input, self.n_steps_output = n_steps_input, n_steps_output
        self.runs = STEPS - n_steps_input - n_steps_output + 1
        with h5py.File(file) as root:
            groups = [root[f"t{order}_fields"] for order in range(3)]
            self.fields = {name: torch.from_numpy(group[name][:]) for group in groups for name in group}

    def __len__(self):
        return len(self.fields["pressure"]) * self.runs

    def __getitem__(self, index):
        sample, first = divmod(index, self.runs)
        fields = {name: field[sample] for name, field in self.fields.items() if name != "height"}
        scalars = [fields[name][..., None] for name in self.core_field_names[:2]]
        tensors = [fields[name].flatten(3) for name in self.core_field_names[2:]]
        varying, known = torch.cat(scalars + tensors, -1), first + self.n_steps_input
        height = self.fields["height"].expand_as(fields["porosity"])
        return {
            "input_fields": varying[first:known],
            "output_fields": varying[known : known + self.n_steps_output],
            "constant_fields": torch.stack([fields["porosity"], height], -1),
            "constant_scalars": torch.tensor([0.1]),
            "boundary_conditions": torch.tensor([[0.0, 0.0], [2.0, 2.0]]),
        }


def own(path, n_steps_input, n_steps_output):
    """The reader of The Well's package."""
    data = pytest.importorskip("the_well.data")
    return data.WellDataset(
        path=str(path), n_steps_input=n_steps_input, n_steps_output=n_steps_output, use_normalization=False
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of files of one resolution each, as The Well's reader wants them."""
    folders = {n: tmp_path_factory.mktemp(f"r{n}") for n in (8, 16)}
    for n, folder in folders.items():
        write(folder / "made.hdf5", 3, (n, 3 * n // 2), seed=n)
    return folders


@pytest.fixture(params=[own, Published], ids=["the_well", "published"])
def reader(request):
    return request.param


@pytest.fixture(scope="module")
def stores(folders, tmp_path_factory):
    return {
        n: import_the_well(
            tmp_path_factory.mktemp("stores") / "made.zarr",
            {"train": [folder / "made.hdf5"]},
            registration="cell",
            domain=DOMAIN,
            progress=False,
        )
        for n, folder in folders.items()
    }


@pytest.mark.parametrize("time_steps", [(1, 1), (2, 3)])
def test_reader_and_importer_give_the_same_samples(reader, time_steps, folders, stores):
    """Channel by channel under the same labels, to the bit."""
    for n, folder in folders.items():
        samples = WellSamples(reader(folder, *time_steps))
        imported = FieldDataset(
            stores[n], stores[n].grids[next(iter(stores[n].grids))], "train", time_steps=time_steps
        )
        assert samples.inputs == imported.inputs and samples.outputs == imported.outputs
        assert len(samples) == len(imported) == 3 * (STEPS - sum(time_steps) + 1)
        for i in range(len(samples)):
            for name in ("x", "y"):
                torch.testing.assert_close(samples[i][name], imported[i][name], rtol=0, atol=0)
        assert samples.periodic == (False, True) == tuple(axis.periodic for axis in imported.grid)


def statistics_of(store):
    """As The Well keeps them: numbers for components."""
    statistics = {}
    for what in ("mean", "std"):
        numbers = {name: one[what] for name, one in store.statistics.items()}
        numbers["velocity"] = [numbers.pop(f"velocity_{a}") for a in NAMES]
        numbers["stress"] = [[numbers.pop(f"stress_{a}{b}") for b in NAMES] for a in NAMES]
        statistics[what] = numbers
    return statistics


def test_statistics_of_the_well_make_the_processor_of_the_store(reader, folders, stores):
    samples = WellSamples(reader(folders[8], 1, 1))
    expected = FieldProcessor.from_store(
        stores[8], channels=FieldDataset(stores[8], (8, 12), "train", time_steps=(1, 1)).channels
    )
    assert samples.processor(statistics_of(stores[8])).to_dict() == expected.to_dict()


def test_trainer_trains_on_samples_of_the_well_at_both_resolutions(reader, folders, stores):
    """On batches of one resolution each."""
    parts = [WellSamples(reader(folder, 1, 1)) for folder in folders.values()]
    channels = len(parts[0].inputs), len(parts[0].outputs)
    size = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "reference_shape": (8, 12)}
    model = MANO(*channels, **size, registration="cell", periodic=parts[0].periodic)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = Trainer(model=model, n_epochs=1, data_processor=parts[0].processor(statistics_of(stores[8])))
    batches = ResolutionBatchSampler([len(part) for part in parts], [4, 2])
    errors = trainer.train(
        train_loader=DataLoader(ConcatDataset(parts), batch_sampler=batches),
        test_loaders={f"r{n}": DataLoader(part, 2) for n, part in zip(folders, parts, strict=True)},
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
        training_loss=LpLoss(d=2),
        eval_losses={"l2": LpLoss(d=2)},
    )
    assert all(np.isfinite(float(errors[name])) for name in ("train_err", "r8_l2", "r16_l2"))


def test_data_set_without_time_steps_is_refused():
    bare = SimpleNamespace(metadata=Published.metadata, n_steps_input=1)
    with pytest.raises(InputError, match="SimpleNamespace has no attribute 'n_steps_output'"):
        WellSamples(bare)
