"""Lightning trains MANO on our loaders: the recipe, and what it has to say of ranks, epochs and resolutions.

The package has no class for it. Its loaders are DataLoaders, its processor is a module that follows the mode
of the one it is in, and its models map fields to fields, so the two classes below are all there is to do:

* `Fields` makes the loaders in `setup`, when the ranks of a distributed training are known, and each gets its
  part. Hence ``Trainer(use_distributed_sampler=False)``: with the default, Lightning refuses our sampler.
* Lightning tells a sampler of batches no epoch. It counts by itself, and `train_dataloader`, which is called
  when a checkpoint has been read, says where it goes on.
* `Operator` returns the mean over the samples of a batch, as gradients are averaged over ranks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import wave_store
from neuralop.losses import LpLoss

from mano_op import MANO, Grid
from mano_op.data.loaders import field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.processor import FieldProcessor

lightning = pytest.importorskip("lightning")

pytestmark = [
    # Of torch, which Lightning calls in its old way.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    # Fields this few are read fastest by the process itself, and make short epochs.
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings(
        "ignore:The number of training batches .* is smaller than the logging interval"
    ),
]
SIZES = (8, 16)
SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "reference_shape": [8, 8], "registration": "cell"}


class Fields(lightning.LightningDataModule):
    def __init__(self, path, batch_size):
        super().__init__()
        self.path, self.batch_size = path, batch_size

    def setup(self, stage=None):
        mixed = Mixed(SIZES, batch_size=self.batch_size)
        self.loaders = field_loaders(self.path, train=mixed, test=SIZES, test_batch_size=3)

    def train_dataloader(self):
        self.loaders.train.batch_sampler.set_epoch(self.trainer.current_epoch)
        return self.loaders.train

    def val_dataloader(self):
        return list(self.loaders.test.values())


class Operator(lightning.LightningModule):
    """What makes it are plain values, so a checkpoint holds no code."""

    def __init__(self, options, processor):
        super().__init__()
        self.save_hyperparameters()
        self.processor = FieldProcessor.from_dict(processor)
        self.model = MANO(len(self.processor.inputs), len(self.processor.outputs), **options)

    def loss(self, batch):
        data = self.processor.preprocess(batch)
        out, data = self.processor.postprocess(self.model(data["x"]), data)
        return LpLoss(d=2)(out, data["y"]) / len(out)

    def training_step(self, batch, _):
        return self.loss(batch)

    def validation_step(self, batch, _, dataloader_idx):
        name = f"{SIZES[dataloader_idx]}_l2"
        options = {"add_dataloader_idx": False, "batch_size": len(batch["y"]), "sync_dist": True}
        self.log(name, self.loss(batch), **options)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def trainer_of(folder, epochs, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **(quiet | {"enable_checkpointing": False, "use_distributed_sampler": False} | options),
    )


def operator_of(path):
    processor = field_loaders(path, train=8, test=[], batch_size=1).processor
    torch.manual_seed(0)
    return Operator(SMALL, processor.to_dict())


def trained(path, folder, epochs, *, batch_size=(4, 2), resumed=None, **options):
    operator, trainer = operator_of(path), trainer_of(folder, epochs, **options)
    trainer.fit(operator, Fields(path, list(batch_size)), ckpt_path=resumed, weights_only=True)
    return operator, trainer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    grids = [Grid.uniform((n, n), registration="cell") for n in SIZES]
    return wave_store(tmp_path_factory.mktemp("lightning") / "waves.zarr", grids, {"train": 8, "test": 5})


def assert_same_parameters(one, other, **tolerances):
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} | tolerances), msg=name)


def test_lightning_trains_as_a_written_out_loop(store, tmp_path):
    """Two epochs at two resolutions, bit for bit, and the errors of the test samples in units."""
    operator, trainer = trained(store.path, tmp_path, 2)
    own = operator_of(store.path)
    train, test, processor = field_loaders(store, train=Mixed(SIZES, batch_size=[4, 2]), test=SIZES)
    optimizer = torch.optim.SGD(own.model.parameters(), lr=1e-2)
    sizes = []
    for _ in range(2):
        for batch in train:
            data = processor.train().preprocess(batch)
            sizes.append(data["x"].shape[-1])
            optimizer.zero_grad()
            (LpLoss(d=2)(own.model(data["x"]), data["y"]) / len(data["y"])).backward()
            optimizer.step()
    assert sorted(sizes) == [8] * 4 + [16] * 8
    assert_same_parameters(operator, own)
    processor.eval().wrap(own.model.eval())
    for n in SIZES:
        total = 0.0
        for batch in test[n]:
            with torch.no_grad():
                out, data = processor(**batch)
            total += (
                ((out - data["y"]).flatten(1).norm(dim=1) / data["y"].flatten(1).norm(dim=1)).sum().item()
            )
        assert trainer.callback_metrics[f"{n}_l2"].item() == pytest.approx(total / 5, rel=1e-5)


def test_resumed_training_is_an_uninterrupted_one(store, tmp_path):
    """With the order of its second epoch; the checkpoint is read without executing anything."""
    straight, _ = trained(store.path, tmp_path, 2)
    half_way, half = trained(store.path, tmp_path, 1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    loaded = Operator.load_from_checkpoint(tmp_path / "half.ckpt", weights_only=True)
    assert_same_parameters(loaded, half_way)
    resumed, _ = trained(store.path, tmp_path, 2, resumed=tmp_path / "half.ckpt")
    assert_same_parameters(resumed, straight)


# One process that has imported everything, whose children are the ranks, with the variables of torchrun.
RANKS = """
import json, os, socket, sys, traceback
import torch
torch.set_num_threads(1)
from test_lightning import trained
from lightning.pytorch.strategies import DDPStrategy


def train(rank, path, folder):
    def two():
        return {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")}

    operator, trainer = trained(path, folder, 2, batch_size=(2, 1), **two())
    sampler = trainer.train_dataloader.batch_sampler
    told = {"ranks": [sampler.num_replicas, sampler.rank], "epoch": sampler.epoch, "refused": ""}
    torch.save(operator.state_dict(), f"{folder}/{rank}.pt")
    try:
        trained(path, folder, 1, **two(), use_distributed_sampler=True)
    except TypeError as error:
        told["refused"] = str(error)
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(told, file)


with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
children = []
for rank in range(2):
    children.append(os.fork())
    if children[-1] == 0:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
        numbers |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({name: str(value) for name, value in numbers.items()})
        try:
            train(rank, *sys.argv[1:])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
"""


def test_two_ranks_train_as_one(store, tmp_path):
    """Each with its part of every batch; gradients are averaged, and so is the loss over its samples."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", RANKS, str(store.path), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, _ = trained(store.path, tmp_path, 2)
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told["ranks"] == [2, rank] and told["epoch"] == 2
        assert "use_distributed_sampler=False" in told["refused"]
        several = operator_of(store.path)
        several.load_state_dict(torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        assert_same_parameters(several, one, rtol=1e-4, atol=1e-6)
