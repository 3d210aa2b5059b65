"""Validation: on which samples, with which error, and which parameters are kept."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import wave_store
from torch import nn
from training import GRIDS, assert_same_run
from training import train_fields as train

from mano_op import InputError
from mano_op.data.loaders import Reading, Splits, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore
from mano_op.runs import Run, load_run
from mano_op.train.fields import FieldTask


def errors_of(run: Run, store: FieldStore, n: int, split: str) -> torch.Tensor:
    """Relative errors of the normalised output, of each sample of a split."""
    loader = field_loaders(store, train=8, test=[n], batch_size=12, splits=Splits(test=split)).test[n]
    [sample] = [run.processor.train().preprocess(batch) for batch in loader]
    with torch.no_grad():
        error = run.model.eval()(sample["x"]) - sample["y"]
    return error.flatten(1).norm(dim=1) / sample["y"].flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("options", "resolutions"),
    [
        ({}, [8]),
        ({"validate_resolution": 16}, [16]),
        ({"validate_resolution": Mixed([16, 8])}, [16, 8]),
        ({"resolution": Mixed([8, 16])}, [8, 16]),
    ],
)
def test_validation_error_is_the_mean_over_a_split(
    options: dict[str, Any], resolutions: list[int], fields: FieldStore, tmp_path: Path
) -> None:
    """Of the samples of all resolutions together."""
    run = train(fields, tmp_path, epochs=1, validate="validation", **options)
    expected = torch.cat([errors_of(run, fields, n, "validation") for n in resolutions]).mean().item()
    assert run.history[0]["validation_error"] == pytest.approx(expected, rel=1e-5)
    keys = [f"r{n}" for n in resolutions]
    assert run.training["validation"] == {"resolution": keys, "samples": dict.fromkeys(keys, 5)}
    assert run.training["best"] == {"epoch": 1, "validation_error": run.history[0]["validation_error"]}
    assert load_run(tmp_path).training == run.training


def test_validation_changes_nothing_but_what_is_kept(fields: FieldStore, tmp_path: Path) -> None:
    options = {"resolution": Mixed([8, 16]), "optimizer": "muon", "epochs": 2}
    plain = train(fields, tmp_path / "plain", **options)
    validated = train(fields, tmp_path / "validated", validate="validation", **options)
    errors = [[epoch["training_error"] for epoch in run.history] for run in (plain, validated)]
    assert errors[0] == errors[1]
    assert all("validation_error" not in epoch for epoch in plain.history)
    assert not {"validate", "validation", "best"} & set(plain.training)


def test_patience_ends_training(fields: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([0.5, 0.4, 0.4, 0.3, 0.6, 0.3, 0.7, 0.1])
    models = []

    def validate(task: FieldTask, model: nn.Module) -> dict[str, float]:
        models.append([parameter.detach().clone() for parameter in model.parameters()])
        return {"validation_error": next(errors)}

    monkeypatch.setattr(FieldTask, "validate", validate)
    run = train(fields, tmp_path, epochs=20, validate=0.25, patience=3)
    assert [epoch["validation_error"] for epoch in run.history] == [0.5, 0.4, 0.4, 0.3, 0.6, 0.3, 0.7]
    assert run.training["best"] == {"epoch": 4, "validation_error": 0.3}
    assert run.training["patience"] == 3 and run.training["epochs"] == 20
    for kept in (run, load_run(tmp_path)):  # parameters of the best epoch, not of the last
        assert all(map(torch.equal, models[3], kept.model.parameters()))
    assert run.errors["validation_error"] == 0.3


def test_stopped_training_is_over_when_it_is_resumed(
    fields: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last checkpoint and before the run was written."""

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    options = {"epochs": 30, "learning_rate": 0.3, "validate": "validation", "patience": 2, "seed": 2}
    whole = train(fields, tmp_path / "whole", **options)
    assert len(whole.history) < 30
    with monkeypatch.context() as patch:
        patch.setattr("mano_op.train.loop.save_run", fail)
        with pytest.raises(KeyboardInterrupt):
            train(fields, tmp_path / "run", **options)
    assert_same_run(train(fields, tmp_path / "run", resume=True, **options), whole)


def fields_of(loader: Any) -> set[float]:
    """Each sample by one of its values."""
    return {value for batch in loader for value in batch["y"][:, 0, 3, 3].tolist()}


def test_held_out_samples_are_not_trained_on(fields: FieldStore, tmp_path: Path) -> None:
    mixed = {"train": Mixed([8, 16]), "batch_size": 4, "seed": 7}
    everything = field_loaders(fields, test=[], **mixed)
    loaders = field_loaders(fields, test=[8, 16], splits=Splits(hold_out=0.25), **mixed)
    trained, held = fields_of(loaders.train), {n: fields_of(loader) for n, loader in loaders.test.items()}
    assert len(trained) == 18 and {n: len(values) for n, values in held.items()} == {8: 3, 16: 3}
    assert not trained & (held[8] | held[16])
    assert trained | held[8] | held[16] == fields_of(everything.train)
    assert loaders.processor.to_dict() == everything.processor.to_dict()
    # The same samples at both resolutions, so that none is trained on at one and validated on at the other.
    rows = [list(loader.dataset.indices) for loader in loaders.test.values()]  # type: ignore[attr-defined]
    assert rows[0] == rows[1]
    again, other = (
        field_loaders(fields, train=8, test=[8], batch_size=4, splits=Splits(hold_out=0.25), seed=seed)
        for seed in (7, 8)
    )
    assert fields_of(again.test[8]) == held[8] != fields_of(other.test[8])
    run = train(fields, tmp_path, validate=0.25, resolution=Mixed([8, 16], ratios=[0.5, 0.5]), epochs=1)
    assert run.training["validation"]["samples"] == {"r8": 3, "r16": 3}
    assert (run.training["validate"], run.training["samples"]) == (0.25, {"r8": 9, "r16": 9})


def test_held_out_samples_of_a_streamed_store_are_the_same(fields: FieldStore) -> None:
    """Read chunk by chunk, and by a copy as another process has it."""
    options = {"train": 8, "test": [8], "batch_size": 4, "splits": Splits(hold_out=0.25), "seed": 7}
    kept = field_loaders(fields, **options)
    streamed = field_loaders(fields, reading=Reading(shuffle="chunks", cache_bytes=0), **options)
    assert fields_of(streamed.train) == fields_of(kept.train)
    assert fields_of(streamed.test[8]) == fields_of(kept.test[8])
    sent = pickle.loads(pickle.dumps(kept.train.dataset))
    assert {sample["y"][0, 3, 3].item() for sample in sent} == fields_of(kept.train)


def test_split_that_a_resolution_does_not_have_is_refused(tmp_path: Path) -> None:
    held = {GRIDS[0]: ("train", "test"), GRIDS[1]: ("train",)}
    store = wave_store(tmp_path / "waves.zarr", GRIDS, {"train": 4, "test": 2}, held=held)
    with pytest.raises(InputError, match=r"r16 has no split 'test'; .* while 'test' is at r8"):
        train(store, tmp_path / "run", validate="test", validate_resolution=16)
    assert not (tmp_path / "run").exists()


def test_infinite_validation_error_ends_training(
    fields: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FieldTask, "validate", lambda *args: {"validation_error": float("nan")})
    with pytest.raises(InputError, match="mano at r8: the validation error is nan in epoch 1 of 4, training"):
        train(fields, tmp_path, validate="test")
    assert list(tmp_path.iterdir()) == []
