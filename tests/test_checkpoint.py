"""A training that is interrupted, by whatever means, goes on to the numbers of one that is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import wave_store

from mano_op import Grid, InputError
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore
from mano_op.files import partial_file, read_tensors
from mano_op.runs import Run, load_run
from mano_op.train import train_model
from mano_op.train.checkpoint import differences

SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "n_levels": 2}
GRIDS = [Grid.uniform((n, n), registration="cell") for n in (8, 16)]
ALL = {  # every kind of state that there is
    "resolution": {"resolutions": [8, 16], "ratios": [0.6, 0.4], "batch_size": [4, 2]},
    "optimizer": "muon",
    "symmetries": ["transpose", "reflect"],
    "validate": 0.25,
    "patience": 3,
    "clip": 1.0,
    "accumulate": 2,
}
FILES = ["README.md", "config.json", "model.safetensors", "run.json"]  # of a run
FNO = {"arch": "fno", "options": {"n_modes": [4, 4], "hidden_channels": 8, "n_layers": 1}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FieldStore:
    folder = tmp_path_factory.mktemp("checkpoint")
    return wave_store(folder / "waves.zarr", GRIDS, {"train": 12, "test": 4})


def train(store: FieldStore, out: Path, **options: Any) -> Run:
    settings = {"resolution": 8, "options": SMALL, "epochs": 4, "batch_size": 5, "progress": False}
    return train_model(store, out, **(settings | options))


def interrupt(store: FieldStore, out: Path, after: int, **options: Any) -> None:
    """Stop a training in the epoch after some."""

    def stop(epoch: int, metrics: object) -> None:
        if epoch > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, out, log=stop, **options)


def same(one: Run, other: Run) -> None:
    """To the last bit, but for the seconds."""
    for a, b in zip(
        one.model.state_dict().items(), other.model.state_dict().items(), strict=True
    ):  # buffers too
        assert a[0] == b[0]
        assert a[0] == "_metadata" or torch.equal(a[1], b[1]), a[0]
    histories = [[{**epoch, "seconds": 0} for epoch in run.history] for run in (one, other)]
    assert histories[0] == histories[1]
    assert {**one.training, "machine": 0} == {**other.training, "machine": 0}
    assert one.processor.to_dict() == other.processor.to_dict()


@pytest.mark.parametrize(
    ("after", "options"),
    [
        (0, ALL),
        (1, ALL),
        (3, ALL),
        (1, {}),
        (1, {"precision": "float16", "clip": 0.5}),
        (1, {"validate": "test", "validate_resolution": Mixed([8, 16])}),
        (1, FNO),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    after: int, options: dict[str, Any], store: FieldStore, tmp_path: Path
) -> None:
    whole = train(store, tmp_path / "whole", **options)
    interrupt(store, tmp_path / "run", after, **options)
    torch.manual_seed(after)  # what was drawn since does not matter
    resumed = train(store, tmp_path / "run", resume=True, **options)
    same(resumed, whole)
    same(load_run(tmp_path / "run"), whole)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*FILES}


def test_dropout_goes_on_with_its_numbers(store: FieldStore, tmp_path: Path) -> None:
    options = {"arch": "fno", "options": {**FNO["options"], "channel_mlp_dropout": 0.5}}  # type: ignore[dict-item]
    whole = train(store, tmp_path / "whole", **options)
    interrupt(store, tmp_path / "run", 2, **options)
    same(train(store, tmp_path / "run", resume=True, **options), whole)
    with pytest.raises(AssertionError):  # it is drawn anew in every step
        same(train(store, tmp_path / "none", **FNO), whole)


def test_a_scale_that_was_found_is_kept(
    store: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one that overflows, steps are left out until it fits; not again after an interruption."""
    monkeypatch.setattr(
        "mano_op.train.loop.scaler_for", lambda *args: torch.amp.GradScaler("cpu", init_scale=2.0**24)
    )
    whole = train(store, tmp_path / "whole", precision="float16", epochs=6)
    interrupt(store, tmp_path / "run", 3, precision="float16", epochs=6)
    kept = read_tensors(tmp_path / "run" / "checkpoint.pt")["training"]["scaler"]
    assert kept["scale"] < 2.0**22
    same(train(store, tmp_path / "run", precision="float16", epochs=6, resume=True), whole)


def test_checkpoints_come_every_so_many_epochs_and_after_the_last(store: FieldStore, tmp_path: Path) -> None:
    seen = []

    def look(epoch: int, metrics: object) -> None:
        path = tmp_path / "run" / "checkpoint.pt"
        there = path.exists() and len(read_tensors(path)["training"]["history"])
        seen.append(there)

    train(store, tmp_path / "run", epochs=7, checkpoint_every=3, log=look)
    assert seen == [False, False, False, 3, 3, 3, 6]
    interrupt(store, tmp_path / "none", 2, checkpoint_every=0)
    assert list((tmp_path / "none").iterdir()) == []


def test_a_checkpoint_is_tensors_and_plain_values(store: FieldStore, tmp_path: Path) -> None:
    interrupt(store, tmp_path, 2, **ALL)
    found = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert found["format"] == "mano_op checkpoint"
    assert [epoch["epoch"] for epoch in found["training"]["history"]] == [1, 2]
    assert json.loads(json.dumps(found["asked"])) == found["asked"]
    assert found["training"]["best"]["parameters"].keys() == found["training"]["model"].keys()


def test_a_training_that_was_begun_is_not_replaced_unasked(store: FieldStore, tmp_path: Path) -> None:
    interrupt(store, tmp_path, 2)
    with pytest.raises(InputError, match=r"begun and not finished: pass resume=True to go on with it, over"):
        train(store, tmp_path)
    same(train(store, tmp_path, overwrite=True), train(store, tmp_path / "other"))
    with pytest.raises(InputError, match="resume=True and overwrite=True: pass one of them"):
        train(store, tmp_path, resume=True, overwrite=True)


def test_resuming_nothing_begins_and_resuming_what_is_finished_reads(
    store: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(store, tmp_path / "run", resume=True)
    same(first, train(store, tmp_path / "other"))
    written = (tmp_path / "run" / "run.json").read_bytes()

    def work(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("mano_op.train.loop._train_epochs", work)
    again = train(store, tmp_path / "run", resume=True)
    assert again.history == first.history
    same(again, first)
    assert (tmp_path / "run" / "run.json").read_bytes() == written
    with pytest.raises(
        InputError, match=r"finished run of another training: epochs is 4 there, not 5\. Give"
    ):
        train(store, tmp_path / "run", resume=True, epochs=5)


def test_a_run_that_is_replaced_is_there_until_then(store: FieldStore, tmp_path: Path) -> None:
    """And a replacement that was interrupted is gone on with, not taken for the old run."""
    old = train(store, tmp_path)
    interrupt(store, tmp_path, 2, seed=1, overwrite=True)
    same(load_run(tmp_path), old)
    with pytest.raises(InputError, match="begun and not finished"):
        train(store, tmp_path, seed=1)
    same(train(store, tmp_path, seed=1, resume=True), train(store, tmp_path / "other", seed=1))
    assert load_run(tmp_path).training["seed"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 5}, "epochs is 4 there, not 5. To go on with it, use what it was begun with"),
        ({"seed": 1}, "seed is 0 there, not 1"),
        ({"learning_rate": 0.5}, "learning_rate is 0.01 there, not 0.5"),
        ({"batch_size": 3}, "batch_size is 5 there, not 3"),
        ({"resolution": 16}, "resolution is r8 there, not r16"),
        ({"options": {**SMALL, "n_heads": 4}}, r"options\.n_heads is 2 there, not 4"),
        ({"optimizer": "muon"}, "optimizer is adamw there, not muon"),
        ({"clip": 1.0}, r"clip is not given there, not 1\.0"),
        ({"validate": 0.5}, r"samples is 12 there, not 6; validate is not given there, not 0\.5"),
        ({"transforms": {"u": "asinh"}}, r"processor\.outputs\.u\.transform is not given there, not asinh"),
    ],
)
def test_other_arguments_are_refused(
    options: dict[str, Any], message: str, store: FieldStore, tmp_path: Path
) -> None:
    interrupt(store, tmp_path, 1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match=message):
        train(store, tmp_path, resume=True, **options)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_what_changes_no_number_may_change(store: FieldStore, tmp_path: Path) -> None:
    whole = train(store, tmp_path / "whole")
    interrupt(store, tmp_path / "run", 1)
    moved = shutil.copytree(store.path, tmp_path / "moved.zarr")
    told: list[int] = []
    options = {"checkpoint_every": 3, "log": lambda epoch, metrics: told.append(epoch)}
    resumed = train(moved, tmp_path / "run", resume=True, **options)
    assert told == [2, 3, 4]
    resumed.training["store"] = whole.training["store"]
    same(resumed, whole)


def test_another_store_is_refused(store: FieldStore, tmp_path: Path) -> None:
    interrupt(store, tmp_path / "run", 1)
    other = wave_store(tmp_path / "waves.zarr", GRIDS, {"train": 13, "test": 3})
    with pytest.raises(InputError, match=r"samples is 12 there, not 13; .*fields\.splits\.train is 12 there"):
        train(other, tmp_path / "run", resume=True)


def test_other_versions_are_refused(store: FieldStore, tmp_path: Path) -> None:
    interrupt(store, tmp_path, 1)
    path = tmp_path / "checkpoint.pt"
    kept = read_tensors(path)
    for change, message in (
        (
            {"format": "zip"},
            "has format 'zip' version 2, expected 'mano_op checkpoint' version 2: go on with",
        ),
        ({"format_version": 3}, "version 3, expected 'mano_op checkpoint' version 2"),
        ({"asked": None}, "lacks what was asked for, or what was trained: pass overwrite=True"),
        (
            {"asked": {**kept["asked"], "versions": {**kept["asked"]["versions"], "torch": "1.0"}}},
            rf"versions\.torch is 1\.0 there, not {torch.__version__.split('+')[0]}",
        ),
        ({"training": {**kept["training"], "optimizer": {}}}, "does not fit the training .*KeyError.*over"),
    ):
        torch.save({**kept, **change}, path)
        with pytest.raises(InputError, match=message):
            train(store, tmp_path, resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read as tensors"):
        train(store, tmp_path, resume=True)


def test_what_diverges_leaves_no_checkpoint(store: FieldStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has diverged and nothing is kept"):
        train(store, tmp_path, learning_rate=1e30, epochs=3)
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_in_vain_leaves_the_checkpoint(
    store: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that cannot be read says nothing against what was trained."""
    interrupt(store, tmp_path, 2)

    def damaged(*args: object, **kwargs: object) -> None:
        raise InputError("a chunk is damaged")

    with monkeypatch.context() as patch:
        patch.setattr("mano_op.train.loop._train_epochs", damaged)
        with pytest.raises(InputError, match="a chunk is damaged"):
            train(store, tmp_path, resume=True)
    assert len(train(store, tmp_path, resume=True).history) == 4


def test_one_process_at_a_time(store: FieldStore, tmp_path: Path) -> None:
    refused = []

    def second(epoch: int, metrics: object) -> None:
        with pytest.raises(InputError, match=r"is being written by another process") as error:
            train(store, tmp_path / "run", overwrite=True)
        refused.append(error)

    train(store, tmp_path / "run", epochs=2, log=second)
    assert len(refused) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_differences_are_found_at_any_depth() -> None:
    there = {"a": {"b": {}, "c": [1]}, "d": 1, "e": {"f": None}}
    assert differences(there, there) == []
    asked = {"a": {"b": {"x": 1}, "c": [2]}, "d": 1, "e": {}}
    assert differences(there, asked) == [
        "a.b is {} there, not not given",
        "a.c is [1] there, not [2]",
        "e.f is None there, not not given",
        "a.b.x is not given there, not 1",
        "e is not given there, not {}",
    ]


# One process that has imported everything and computed nothing, whose children train and are killed.
KILLING = """
import json, os, random, signal, stat, sys, time, traceback
import torch
torch.set_num_threads(1)
import torch._dynamo  # which the first optimiser of a process would import, in two seconds
import mano_op.files, mano_op.models.mano
from mano_op.train import train_model

folder, settings = sys.argv[1], json.loads(sys.argv[2])
draw = random.Random(0)


def start(out, patch=None):
    child = os.fork()
    if child:
        return child
    try:
        if patch is not None:
            patch()
        train_model(f"{folder}/waves.zarr", out, resume=True, progress=False, **settings)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def around_replace(name, count, before):
    '''Die before a file of that name takes its name for the so-manieth time, or after.'''
    left, replace = [count], os.replace

    def replaced(source, target):
        mine = os.path.basename(target) == name
        left[0] -= mine
        if before and mine and not left[0]:
            die()
        replace(source, target)
        if mine and not left[0]:
            die()

    return lambda: setattr(os, "replace", replaced)


def half_written(count):
    '''Die with half of a file on the disk, the so-manieth that is written.'''
    left, sync = [count], os.fsync

    def synced(file):
        if stat.S_ISREG(os.fstat(file).st_mode):
            left[0] -= 1
            if not left[0]:
                os.ftruncate(file, os.fstat(file).st_size // 2)
                die()
        sync(file)

    return lambda: setattr(os, "fsync", synced)


def there(out):
    '''What is in the folder, but for the lock, which the system lets go of with the process.'''
    return sorted(set(os.listdir(out)) - {"checkpoint.pt.lock"}) if os.path.isdir(out) else []


def ended(child):
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


told = {"whole": ended(start(f"{folder}/whole")), "random": [], "points": []}

# At moments that are drawn: within some tenths of a second after the next checkpoint, or of the start.
out, written = f"{folder}/random", f"{folder}/random/checkpoint.pt"
for attempt in range(int(sys.argv[3])):
    before, child = os.path.exists(written) and os.stat(written).st_mtime_ns, start(out)
    deadline = time.monotonic() + 60
    while draw.random() < 0.997 and time.monotonic() < deadline:
        time.sleep(0.001)
        if os.path.exists(written) and os.stat(written).st_mtime_ns != before:
            break
    time.sleep(draw.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    told["random"].append([ended(child), there(out)])
told["random"].append([ended(start(out)), there(out)])

# At moments that are chosen: in the first checkpoint, between two, and while the run is written.
out = f"{folder}/points"
for patch in (
    half_written(1),
    around_replace("checkpoint.pt", 1, True),
    around_replace("checkpoint.pt", 2, False),
    half_written(2),
    around_replace("model.safetensors", 1, False),
    around_replace("run.json", 1, True),
    around_replace("run.json", 1, False),
):
    told["points"].append([ended(start(out, patch)), there(out)])
told["points"].append([ended(start(out)), there(out)])
print(json.dumps(told))
"""


@pytest.mark.parametrize(("options", "kills"), [({"epochs": 12}, 10), (ALL, 10)], ids=["adamw", "all"])
def test_a_killed_training_is_gone_on_with(options: dict[str, Any], kills: int, tmp_path: Path) -> None:
    """By SIGKILL, again and again: between steps, in the middle of a checkpoint, while the run is written."""
    wave_store(tmp_path / "waves.zarr", GRIDS, {"train": 12, "test": 4})
    settings = {"resolution": 8, "options": SMALL, "epochs": 8, "batch_size": 5} | options
    command = [sys.executable, "-c", KILLING, str(tmp_path), json.dumps(settings), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["whole"] == 0, done.stderr
    *killed, last = told["random"]
    # Some may come when all is done; enough come when there is something to lose.
    assert sum(code == 9 for code, _ in killed) >= 3, (told, done.stderr)
    assert last == [0, FILES], (told, done.stderr)
    *killed, last = told["points"]
    assert [code for code, _ in killed] == [9] * 7, (told, done.stderr)
    assert killed[0][1] == ["checkpoint.pt.partial"]
    assert killed[3][1] == ["checkpoint.pt", "checkpoint.pt.partial"]
    assert killed[5][1] == sorted(["checkpoint.pt", *FILES[:-1], "run.json.partial"])
    assert killed[6][1] == sorted(["checkpoint.pt", *FILES])
    assert last == [0, FILES], (told, done.stderr)
    assert not list(tmp_path.rglob("*.lock"))
    whole = load_run(tmp_path / "whole")
    for name in ("random", "points"):
        same(load_run(tmp_path / name), whole)


def test_what_a_killed_process_has_left_is_gone(store: FieldStore, tmp_path: Path) -> None:
    partial_file(tmp_path / "checkpoint.pt").write_bytes(b"half")
    same(train(store, tmp_path), train(store, tmp_path / "other"))
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "other"}
