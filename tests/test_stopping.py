"""Validation: on which samples, with which error, and which model is kept of it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import wave_store
from torch import nn

from mano_op import Grid, InputError
from mano_op.data.loaders import Reading, Splits, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore
from mano_op.registry import build_model
from mano_op.runs import Run, load_run
from mano_op.train import train_model
from mano_op.train.stopping import Best

SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "n_levels": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FieldStore:
    grids = [Grid.uniform((n, n), registration="cell") for n in (8, 16)]
    splits = {"train": 12, "validation": 5, "test": 4}
    held = {grids[0]: ("train", "validation", "test"), grids[1]: ("train", "validation")}
    return wave_store(tmp_path_factory.mktemp("stopping") / "waves.zarr", grids, splits, held=held)


def train(store: FieldStore, out: Path, **options: Any) -> Run:
    settings = {"resolution": 8, "options": SMALL, "epochs": 4, "batch_size": 4, "progress": False}
    return train_model(store, out, **(settings | options))


def errors_of(run: Run, store: FieldStore, n: int, split: str) -> torch.Tensor:
    """Relative errors of the normalised output, of each sample of a split."""
    loader = field_loaders(store, train=8, test=[n], batch_size=12, splits=Splits(test=split)).test[n]
    [sample] = [run.processor.train().preprocess(batch) for batch in loader]
    with torch.no_grad():
        error = run.model.eval()(sample["x"]) - sample["y"]
    return error.flatten(1).norm(dim=1) / sample["y"].flatten(1).norm(dim=1)


def test_the_error_is_the_mean_of_a_split(store: FieldStore, tmp_path: Path) -> None:
    run = train(store, tmp_path, epochs=1, validate="validation")
    expected = errors_of(run, store, 8, "validation").mean().item()
    assert run.history[0]["validation_error"] == pytest.approx(expected, rel=1e-5)
    assert run.training["validation"] == {
        "split": "validation",
        "resolution": ["r8"],
        "samples": {"r8": 5},
    }
    assert run.training["best"] == {"epoch": 1, "validation_error": run.history[0]["validation_error"]}
    assert load_run(tmp_path).training == run.training


def test_levels_are_validated_at_together(store: FieldStore, tmp_path: Path) -> None:
    """Trained at 8, chosen by what it does at 16, or at both."""
    for levels in ([16], [16, 8]):
        out = tmp_path / str(levels)
        run = train(store, out, epochs=1, validate="validation", validate_resolution=levels)
        errors = torch.cat([errors_of(run, store, n, "validation") for n in levels])
        assert run.history[0]["validation_error"] == pytest.approx(errors.mean().item(), rel=1e-5)
        assert run.training["validation"]["samples"] == {f"r{n}": 5 for n in levels}
    mixed = train(store, tmp_path / "mixed", resolution=Mixed([8, 16]), validate="validation", epochs=1)
    assert mixed.training["validation"]["resolution"] == ["r8", "r16"]


@pytest.mark.parametrize("options", [{}, {"resolution": Mixed([8, 16]), "optimizer": "muon"}])
def test_validating_changes_nothing_but_what_is_kept(
    options: dict[str, Any], store: FieldStore, tmp_path: Path
) -> None:
    plain = train(store, tmp_path / "plain", **options)
    watched = train(store, tmp_path / "watched", validate="validation", **options)
    assert [e["training_error"] for e in watched.history] == [e["training_error"] for e in plain.history]
    assert all("validation_error" not in epoch for epoch in plain.history)
    assert not {"validation", "best", "precision", "clip", "accumulate", "processes"} & set(plain.training)


def test_the_parameters_are_those_of_the_best_epoch(store: FieldStore, tmp_path: Path) -> None:
    """With steps that are far too long, the last epoch is not the best one."""
    run = train(store, tmp_path, epochs=8, learning_rate=0.3, validate="validation")
    errors = [epoch["validation_error"] for epoch in run.history]
    best = int(np.argmin(errors))
    assert best < 7
    assert run.training["best"] == {"epoch": best + 1, "validation_error": errors[best]}
    for one in (run, load_run(tmp_path)):
        assert errors_of(one, store, 8, "validation").mean().item() == pytest.approx(errors[best], rel=1e-5)


def test_patience_ends_training(store: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([0.5, 0.4, 0.4, 0.3, 0.6, 0.3, 0.7, 0.1])
    models = []

    def told(model: nn.Module, *args: object) -> float:
        models.append([parameter.detach().clone() for parameter in model.parameters()])
        return next(errors)

    monkeypatch.setattr("mano_op.train.fields.validation_error", told)
    run = train(store, tmp_path, epochs=20, validate=0.25, patience=3)
    assert [epoch["validation_error"] for epoch in run.history] == [0.5, 0.4, 0.4, 0.3, 0.6, 0.3, 0.7]
    assert run.training["best"] == {"epoch": 4, "validation_error": 0.3}
    assert run.training["validation"]["patience"] == 3 and run.training["epochs"] == 20
    assert all(map(torch.equal, models[3], run.model.parameters()))


def test_a_stopped_training_is_over_when_it_is_resumed(
    store: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last checkpoint and before the run was written."""

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    options = {"epochs": 30, "learning_rate": 0.3, "validate": "validation", "patience": 2, "seed": 2}
    whole = train(store, tmp_path / "whole", **options)
    assert len(whole.history) < 30
    with monkeypatch.context() as patch:
        patch.setattr("mano_op.train.loop.save_run", fail)
        with pytest.raises(KeyboardInterrupt):
            train(store, tmp_path / "run", **options)
    resumed = train(store, tmp_path / "run", resume=True, **options)
    assert len(resumed.history) == len(whole.history)
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))
    assert resumed.training["best"] == whole.training["best"]


def fields_of(loader: Any) -> set[float]:
    """Each sample by one of its values."""
    return {value for batch in loader for value in batch["y"][:, 0, 3, 3].tolist()}


def test_what_is_held_out_is_not_trained_on(store: FieldStore) -> None:
    everything = field_loaders(store, train=Mixed([8, 16]), test=[], batch_size=4)
    loaders = field_loaders(
        store, train=Mixed([8, 16]), test=[8, 16], batch_size=4, splits=Splits(hold_out=0.25), seed=7
    )
    trained, held = (
        fields_of(loaders.train),
        {n: fields_of(loader) for n, loader in loaders.test.items()},
    )
    assert len(trained) == 18 and {n: len(found) for n, found in held.items()} == {8: 3, 16: 3}
    assert not trained & (held[8] | held[16])
    assert trained | held[8] | held[16] == fields_of(everything.train)
    assert loaders.processor.to_dict() == everything.processor.to_dict()
    # The same samples at both levels, so that none is trained on at one and validated on at the other.
    rows = [loader.dataset.indices.tolist() for loader in loaders.test.values()]  # type: ignore[attr-defined]
    assert rows[0] == rows[1]
    again, other = (
        field_loaders(store, train=8, test=[8], batch_size=4, splits=Splits(hold_out=0.25), seed=seed)
        for seed in (7, 8)
    )
    assert fields_of(again.test[8]) == held[8] != fields_of(other.test[8])


def test_a_run_says_what_it_held_out(store: FieldStore, tmp_path: Path) -> None:
    run = train(store, tmp_path, validate=0.25, resolution=Mixed([8, 16]), ratios=[0.5, 0.5], epochs=1)
    assert run.training["validation"]["samples"] == {"r8": 3, "r16": 3}
    assert run.training["validation"]["part"] == 0.25
    assert run.training["samples"] == {"r8": 9, "r16": 9}


def test_held_out_samples_of_a_store_that_is_not_kept(store: FieldStore) -> None:
    """Read chunk by chunk, and by a copy as another process has it, they are the same."""
    options = {"train": 8, "test": [8], "batch_size": 4, "splits": Splits(hold_out=0.25), "seed": 7}
    kept = field_loaders(store, **options)
    streamed = field_loaders(store, reading=Reading(shuffle="chunks", cache_bytes=0), **options)
    assert fields_of(streamed.train) == fields_of(kept.train)
    assert fields_of(streamed.test[8]) == fields_of(kept.test[8])
    sent = pickle.loads(pickle.dumps(kept.train.dataset))
    assert {sample["y"][0, 3, 3].item() for sample in sent} == fields_of(kept.train)


def test_the_best_is_a_copy() -> None:
    model, best = build_model("mano", {"in_channels": 1, "out_channels": 1, **SMALL}), Best()
    best.see(1, 0.5, model)
    before = {name: value.clone() for name, value in best.parameters.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    best.see(2, 0.5, model)
    assert best.epoch == 1
    assert all(torch.equal(before[name], value) for name, value in best.parameters.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validate": "train"}, "validate='train', which is trained on: name another split, or hold out"),
        ({"validate": "valid"}, "r8 has no split 'valid'; it has train, validation, test"),
        (
            {"validate": "test", "validate_resolution": 16},
            "r16 has no split 'test'; .* while 'test' is at r8",
        ),
        ({"validate": "test", "validate_resolution": 32}, "has no resolution 32"),
        ({"validate": 0.0}, r"validate=0\.0, expected a finite number, more than 0"),
        ({"validate": True}, "validate=True, expected a finite number"),
        ({"validate": 0.01}, r"hold_out=0\.01 of 12 samples is 0; .* give 0\.0833 to 0\.917"),
        ({"validate": 1.0}, r"hold_out=1\.0 of 12 samples is 12; expected at least one, and one to be left"),
        ({"validate": 0.5, "patience": 0}, "patience=0, expected a whole number, at least 1"),
        ({"patience": 3}, "patience=3 without validate: name a split to validate on"),
        ({"validate_resolution": 16}, r"validate_resolution=\['r16'\] without validate"),
    ],
)
def test_what_cannot_be_validated_on_is_refused_before_any_work(
    options: dict[str, Any], message: str, store: FieldStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(store, tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_no_number_ends_training(
    store: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mano_op.train.fields.validation_error", lambda *args: float("nan"))
    with pytest.raises(InputError, match="mano at r8: the validation error is nan in epoch 1 of 4, training"):
        train(store, tmp_path, validate="test")
    assert list(tmp_path.iterdir()) == []
