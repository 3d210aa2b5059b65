"""A training that is interrupted, by whatever means, continues to the numbers of one that is not."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import wave_store
from training import FILES, FNO, GRIDS, SMALL, assert_same_run, interrupt, train_fields, train_images

from mano_op import InputError
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore
from mano_op.files import read_tensors
from mano_op.runs import Run, load_run

TRAIN = {"fields": train_fields, "images": train_images}
FIELDS = {  # every kind of state that there is
    "resolution": {"resolutions": [8, 16], "ratios": [0.6, 0.4], "batch_size": [4, 2]},
    "optimizer": "muon",
    "symmetries": ["transpose", "reflect"],
    "validate": 0.25,
    "patience": 3,
    "clip": 1.0,
    "accumulate": 2,
}
IMAGES = {
    "options": {"dropout": 0.3},
    "augmentation": {"shift": 1, "mixup": 0.2, "crop": 0.6},
    "label_smoothing": 0.1,
    "validate": 0.25,
}


@pytest.fixture(scope="module")
def whole(fields: FieldStore, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training that is not interrupted."""
    return train_fields(fields, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("task", "after", "options"),
    [
        *(("fields", after, {**FIELDS, "epochs": 2}) for after in (0, 1)),
        ("fields", 1, {"validate": "test", "validate_resolution": Mixed([8, 16]), "epochs": 2}),
        ("fields", 1, {**FNO, "epochs": 2, "options": {**FNO["options"], "channel_mlp_dropout": 0.5}}),  # type: ignore[dict-item]
        ("images", 2, {**IMAGES, "epochs": 3}),
        ("images", 1, {**IMAGES, "freeze": "backbone", "epochs": 2}),
    ],
)
def test_resumed_training_equals_uninterrupted_one(
    task: str, after: int, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    train, data = TRAIN[task], request.getfixturevalue(task)
    whole = train(data, tmp_path / "whole", **options)
    interrupt(train, data, tmp_path / "run", after, **options)
    torch.manual_seed(after)  # what was drawn since does not matter
    assert_same_run(train(data, tmp_path / "run", resume=True, **options), whole)
    assert_same_run(load_run(tmp_path / "run", task=task), whole)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES


def test_scale_of_float16_is_restored(
    fields: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one that overflows, steps are left out until it fits; not again after an interruption."""
    monkeypatch.setattr(
        "mano_op.train.loop.scaler_for", lambda *args: torch.amp.GradScaler("cpu", init_scale=2.0**24)
    )
    options = {"precision": "float16", "epochs": 4, "clip": 0.5}
    whole = train_fields(fields, tmp_path / "whole", **options)
    interrupt(train_fields, fields, tmp_path / "run", 2, **options)
    kept = read_tensors(tmp_path / "run" / "checkpoint.pt")["training"]["scaler"]
    assert kept["scale"] < 2.0**24
    assert_same_run(train_fields(fields, tmp_path / "run", resume=True, **options), whole)


def test_checkpoints_come_every_few_epochs_and_after_the_last(fields: FieldStore, tmp_path: Path) -> None:
    path, epochs = tmp_path / "run" / "checkpoint.pt", []

    def look(epoch: int, metrics: object) -> None:
        epochs.append(path.exists() and len(read_tensors(path)["training"]["history"]))

    train_fields(fields, tmp_path / "run", epochs=7, checkpoint_every=3, log=look)
    assert epochs == [False, False, False, 3, 3, 3, 6]
    interrupt(train_fields, fields, tmp_path / "none", 2, checkpoint_every=0)
    assert list((tmp_path / "none").iterdir()) == []


def test_begun_training_is_neither_replaced_nor_lost(
    fields: FieldStore, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(train_fields, fields, tmp_path, 2)
    with pytest.raises(InputError, match=r"begun and not finished: pass resume=True to go on with it, over"):
        train_fields(fields, tmp_path)
    with pytest.raises(InputError, match="resume=True and overwrite=True: pass one of them"):
        train_fields(fields, tmp_path, resume=True, overwrite=True)

    def damaged(*args: object, **kwargs: object) -> None:
        raise InputError("a chunk is damaged")

    with monkeypatch.context() as patch:  # which says nothing against what was trained
        patch.setattr("mano_op.train.loop._train_epochs", damaged)
        with pytest.raises(InputError, match="a chunk is damaged"):
            train_fields(fields, tmp_path, resume=True)
    assert len(read_tensors(tmp_path / "checkpoint.pt")["training"]["history"]) == 2
    assert_same_run(train_fields(fields, tmp_path, overwrite=True), whole)


@pytest.mark.parametrize("task", ["fields", "images"])
def test_resuming_begins_what_is_not_begun_and_reads_what_is_finished(
    task: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, data = TRAIN[task], request.getfixturevalue(task)
    first = train(data, tmp_path, resume=True)
    written = (tmp_path / "run.json").read_bytes()
    monkeypatch.setattr("mano_op.train.loop._train_epochs", None)  # it is not trained again
    assert_same_run(train(data, tmp_path, resume=True), first)
    assert (tmp_path / "run.json").read_bytes() == written
    for options, message in (
        ({"resume": True, "epochs": 5}, "finished run of another training: epochs is 4 there, not 5. Give"),
        ({}, "holds a run already: give another folder, or overwrite=True to replace it"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            train(data, tmp_path, **options)


def test_replaced_run_is_there_until_the_new_one_is(fields: FieldStore, whole: Run, tmp_path: Path) -> None:
    """A replacement that was interrupted is continued, and not taken for the old run."""
    train_fields(fields, tmp_path)
    interrupt(train_fields, fields, tmp_path, 2, seed=1, overwrite=True)
    assert_same_run(load_run(tmp_path), whole)
    with pytest.raises(InputError, match="begun and not finished"):
        train_fields(fields, tmp_path, seed=1)
    resumed = train_fields(fields, tmp_path, seed=1, resume=True)
    assert_same_run(resumed, train_fields(fields, tmp_path / "other", seed=1))
    assert load_run(tmp_path).training["seed"] == 1


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (
            "fields",
            [
                ({"epochs": 5}, "epochs is 4 there, not 5. To continue it, use what it was begun with"),
                ({"learning_rate": 0.5}, "learning_rate is 0.01 there, not 0.5"),
                ({"resolution": 16}, "resolution is r8 there, not r16"),
                ({"options": {**SMALL, "n_heads": 4}}, "options.n_heads is 2 there, not 4"),
                ({"clip": 1.0}, "clip is not given there, not 1.0"),
                ({"validate": 0.5}, "samples is 12 there, not 6"),
                ({"transforms": {"u": "asinh"}}, "processor.outputs.u.transform is not given there, not asi"),
            ],
        ),
        (
            "images",
            [
                ({"seed": 1}, "seed is 0 there, not 1"),
                ({"augmentation": {"shift": 1}}, "augmentation.shift is 0 there, not 1"),
                ({"freeze": "backbone"}, "freeze is none there, not backbone"),
                ({"label_smoothing": 0.1}, "processor.smoothing is 0.0 there, not 0.1"),
            ],
        ),
    ],
)
def test_other_options_do_not_continue_a_training(
    task: str, changes: list[Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    train, data = TRAIN[task], request.getfixturevalue(task)
    interrupt(train, data, tmp_path, 1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for options, message in changes:
        with pytest.raises(InputError, match=re.escape(message)):
            train(data, tmp_path, resume=True, **options)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_other_data_does_not_continue_a_training(fields: FieldStore, images: Any, tmp_path: Path) -> None:
    interrupt(train_fields, fields, tmp_path / "fields", 1)
    other = wave_store(tmp_path / "waves.zarr", GRIDS, {"train": 13, "test": 3})
    with pytest.raises(InputError, match=r"samples is 12 there, not 13; .*fields\.splits\.train is 12 there"):
        train_fields(other, tmp_path / "fields", resume=True)
    interrupt(train_images, images, tmp_path / "images", 1)
    with pytest.raises(InputError, match=r"images\.digest is a tenth there, not"):
        train_images("digits", tmp_path / "images", resume=True)


def test_options_that_change_no_number_may_change(fields: FieldStore, whole: Run, tmp_path: Path) -> None:
    interrupt(train_fields, fields, tmp_path / "run", 1)
    moved, epochs = shutil.copytree(fields.path, tmp_path / "moved.zarr"), []
    options = {"checkpoint_every": 3, "log": lambda epoch, metrics: epochs.append(epoch)}
    resumed = train_fields(moved, tmp_path / "run", resume=True, **options)
    assert epochs == [2, 3, 4]
    resumed.training["store"] = whole.training["store"]
    assert_same_run(resumed, whole)


def test_damaged_checkpoints_are_refused(fields: FieldStore, tmp_path: Path) -> None:
    interrupt(train_fields, fields, tmp_path, 1)
    path = tmp_path / "checkpoint.pt"
    kept = read_tensors(path)
    versions = {**kept["asked"]["versions"], "torch": "1.0"}
    for change, message in (
        ({"format": "zip"}, "has format 'zip' version 2, expected 'mano_op checkpoint' version 2: use the"),
        ({"format_version": 3}, "version 3, expected 'mano_op checkpoint' version 2"),
        ({"asked": None}, "lacks its 'asked' or its 'training': pass overwrite=True"),
        ({"asked": {**kept["asked"], "versions": versions}}, r"versions\.torch is 1\.0 there, not \d"),
        ({"training": {**kept["training"], "optimizer": {}}}, "does not fit the training .*KeyError.*over"),
    ):
        torch.save({**kept, **change}, path)
        with pytest.raises(InputError, match=message):
            train_fields(fields, tmp_path, resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read as tensors"):
        train_fields(fields, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("task", "options"),
    [("fields", {"learning_rate": 1e30}), ("images", {"arch": "test_flat", "learning_rate": 1e38})],
)
def test_diverged_training_leaves_nothing_of_its_own(
    task: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    train, data = TRAIN[task], request.getfixturevalue(task)
    with pytest.raises(
        InputError, match=r"the loss is \w+ in epoch \d of 4, training has diverged and nothing"
    ):
        train(data, tmp_path / "none", **options)
    assert list((tmp_path / "none").iterdir()) == []
    before = train(data, tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="has diverged"):
        train(data, tmp_path / "run", overwrite=True, **options)
    assert_same_run(load_run(tmp_path / "run"), before)


def test_one_process_trains_in_a_folder(fields: FieldStore, tmp_path: Path) -> None:
    refused = []

    def second(epoch: int, metrics: object) -> None:
        with pytest.raises(InputError, match=r"is being written by another process") as error:
            train_fields(fields, tmp_path / "run", overwrite=True)
        refused.append(error)

    train_fields(fields, tmp_path / "run", epochs=2, log=second)
    assert len(refused) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# One process that has imported everything and computed nothing, whose children train and are killed.
KILLING = """
import json, os, signal, stat, sys, traceback
import torch
torch.set_num_threads(1)
import torch._dynamo  # which the first optimiser of a process would import, in two seconds
import mano_op.files, mano_op.models.mano
from mano_op.train import loop, train_model

folder, settings = sys.argv[1], json.loads(sys.argv[2])


def end_of(patch=None):
    '''What ends a child that goes on with the training, and what it leaves beside the lock.'''
    child = os.fork()
    if not child:
        try:
            if patch is not None:
                patch()
            train_model(f"{folder}/waves.zarr", f"{folder}/run", resume=True, progress=False, **settings)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, sorted(set(os.listdir(f"{folder}/run")) - {"checkpoint.pt.lock"})


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def around_replace(name, before):
    '''Die before a file takes its name, or after.'''
    replace = os.replace

    def replaced(source, target):
        mine = os.path.basename(target) == name
        if mine and before:
            die()
        replace(source, target)
        if mine:
            die()

    return lambda: setattr(os, "replace", replaced)


def half_written(count):
    '''Die with half of a file on the disk, the n-th that is written.'''
    left, sync = [count], os.fsync

    def synced(file):
        if stat.S_ISREG(os.fstat(file).st_mode):
            left[0] -= 1
            if not left[0]:
                os.ftruncate(file, os.fstat(file).st_size // 2)
                die()
        sync(file)

    return lambda: setattr(os, "fsync", synced)


def within_an_epoch():
    step = loop._step

    def stepped(state, clip):
        step(state, clip)
        if state.history:  # of the second epoch
            die()

    loop._step = stepped


# In the first checkpoint, within an epoch, in the second checkpoint, and while the run is written.
print(json.dumps([end_of(patch) for patch in (
    half_written(1),
    within_an_epoch,
    half_written(2),
    around_replace("model.safetensors", before=False),
    around_replace("run.json", before=True),
    around_replace("run.json", before=False),
    None,
)]))
"""


def test_killed_training_is_continued(tmp_path: Path) -> None:
    """By SIGKILL, again and again: between steps, within a checkpoint, while the run is written."""
    store = wave_store(tmp_path / "waves.zarr", GRIDS, {"train": 12, "test": 4})
    settings = {"resolution": 8, "options": SMALL, "epochs": 3, "batch_size": 5} | FIELDS
    command = [sys.executable, "-c", KILLING, str(tmp_path), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    codes, left = zip(*json.loads(done.stdout), strict=True)
    assert codes == (*[-signal.SIGKILL] * 6, 0), done.stderr
    kept, part = "checkpoint.pt", "checkpoint.pt.partial"
    expected = [[part], [kept], [kept, part], [*FILES[:3], "run.json.partial", kept], [*FILES, kept], FILES]
    assert [*left[:3], *left[4:]] == list(map(sorted, expected))
    assert not list(tmp_path.rglob("*.lock"))
    assert_same_run(load_run(tmp_path / "run"), train_fields(store, tmp_path / "whole", **settings))
