"""Runs: what is written is what is read, and what cannot be read says why."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mano_op import InputError
from mano_op.data.processor import FieldProcessor
from mano_op.registry import build_model
from mano_op.runs import Run, load_run, save_run, write_evaluation
from mano_op.weights import read_weights, write_weights

PROCESSOR = FieldProcessor({"a": {"mean": 2.0, "std": 3.0}}, {"u": {"mean": -1.0, "std": 0.5}})
MANO = {"in_channels": 1, "out_channels": 1, "hidden_channels": 8, "n_layers": 1, "n_heads": 2, "n_levels": 2}
FNO = {"in_channels": 1, "out_channels": 1, "hidden_channels": 8, "n_modes": [4, 4], "n_layers": 1}
PUBLISHED = {"in_channels": 1, "out_channels": 1, "hidden_channels": 8, "n_layers": 1, "n_heads": 2}


def make_run(arch: str, options: dict[str, Any]) -> Run:
    torch.manual_seed(0)
    model = build_model(arch, options)
    return Run(model, PROCESSOR, arch, options, {"resolution": "r8"}, [{"epoch": 1, "training_error": 0.5}])


@pytest.mark.parametrize(("arch", "options"), [("mano", MANO), ("fno", FNO), ("mano_published", PUBLISHED)])
def test_a_run_read_back_computes_the_same(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(arch, options)
    save_run(tmp_path / "run", run)
    found = load_run(tmp_path / "run")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(found.model(x), run.model.eval()(x))
    assert not found.model.training
    assert not found.processor.training
    assert found.processor.to_dict() == PROCESSOR.to_dict()
    assert (found.arch, found.options, found.training, found.history) == (
        arch,
        options,
        run.training,
        run.history,
    )
    assert found.n_parameters == run.n_parameters


def test_the_files_are_data(tmp_path: Path) -> None:
    """Tensors and JSON: nothing in a run needs unpickling, not even FNO's, whose options are functions."""
    run = make_run("fno", FNO)
    save_run(tmp_path, run)
    names = {"run.json", "config.json", "model.safetensors", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    tensors = read_weights(tmp_path / "model.safetensors")
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in tensors.items())
    for name in ("run.json", "config.json"):
        json.loads((tmp_path / name).read_text())


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it_ran"),)


def save_old_run(folder: Path, run: Run) -> None:
    """As releases before the parameters were safetensors did."""
    folder.mkdir(exist_ok=True)
    description = {
        "format": "mano_op run",
        "format_version": 1,
        "model": {"arch": run.arch, "options": run.options, "parameters": run.n_parameters},
        "processor": run.processor.to_dict(),
        "training": run.training,
        "history": run.history,
    }
    (folder / "run.json").write_text(json.dumps(description))
    torch.save(nn.Module.state_dict(run.model), folder / "parameters.pt")


@pytest.mark.parametrize(("arch", "options"), [("mano", MANO), ("fno", FNO)])
def test_an_old_run_is_read_and_replaced(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(arch, options)
    save_old_run(tmp_path, run)
    x = torch.randn(2, 1, 8, 8)
    found = load_run(tmp_path)
    assert torch.equal(found.model(x), run.model.eval()(x))
    assert found.processor.to_dict() == PROCESSOR.to_dict()
    save_run(tmp_path, found)
    assert not (tmp_path / "parameters.pt").exists()
    assert torch.equal(load_run(tmp_path).model(x), run.model(x))


def test_a_pickle_in_place_of_parameters_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_old_run(tmp_path, make_run("mano", MANO))
    (tmp_path / "parameters.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(
        InputError, match=r"parameters\.pt (holds more than tensors|cannot be read as tensors)"
    ):
        load_run(tmp_path)
    assert not (tmp_path / "it_ran").exists()


def test_an_interrupted_write_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mano_op.files.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save_run(tmp_path, make_run("mano", MANO))
    with pytest.raises(InputError, match=r"holds no run\.json, so it is no finished run"):
        load_run(tmp_path)


def test_an_interrupted_replacement_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the old description with the new parameters."""

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    save_run(tmp_path, make_run("mano", MANO))
    monkeypatch.setattr("mano_op.files.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save_run(tmp_path, make_run("mano", MANO))
    with pytest.raises(InputError, match="holds no run"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "something else"},
            "format 'something else' version 2, expected 'mano_op run' version 1 or 2",
        ),
        ({"format_version": 9}, "version 9, expected 'mano_op run' version 1 or 2"),
    ],
)
def test_other_formats_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_run(tmp_path, make_run("mano", MANO))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_run(tmp_path)


def without(entry: str) -> Callable[[dict[str, Any]], Any]:
    return lambda found: {name: value for name, value in found.items() if name != entry}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda found: [found], "'format' is None, expected a str"),
        (without("processor"), "'processor' is None"),
        (without("history"), "'history' is None, expected a list"),
        (lambda found: found | {"processor": {"inputs": {"a": {}}, "outputs": {}}}, "no description of one"),
        (lambda found: found | {"processor": {"inputs": [], "outputs": 3}}, "no description of one"),
    ],
)
def test_a_damaged_description_is_refused(damage: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    save_run(tmp_path, make_run("mano", MANO))
    path = tmp_path / "run.json"
    found = json.loads(path.read_text())
    del found["sha256"]
    path.write_text(json.dumps(damage(found)))
    with pytest.raises(InputError, match=message):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("model"), "'model' is None, expected a dict: restore the file"),
        (lambda found: found | {"model": {"arch": "mano"}}, "'options' is None"),
        (lambda found: found | {"model": {"arch": "mano", "options": {}}}, "mano needs more options"),
    ],
)
def test_a_damaged_description_of_an_old_run_is_refused(
    damage: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    save_old_run(tmp_path, make_run("mano", MANO))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message):
        load_run(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, -3])
def test_a_description_cut_short_is_refused(kept: int, tmp_path: Path) -> None:
    save_run(tmp_path, make_run("mano", MANO))
    path = tmp_path / "run.json"
    path.write_text(path.read_text()[:kept])
    with pytest.raises(InputError, match="is not JSON"):
        load_run(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 1000, -10])
def test_parameters_cut_short_are_refused(kept: int, tmp_path: Path) -> None:
    save_old_run(tmp_path, make_run("mano", MANO))
    path = tmp_path / "parameters.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"parameters\.pt cannot be read as tensors"):
        load_run(tmp_path)


def test_a_run_of_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    run = make_run("mano", MANO)
    run.history[0]["training_error"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_run(tmp_path, run)
    assert not list(tmp_path.iterdir())


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    wider = build_model("mano", {**MANO, "hidden_channels": 16})
    save_old_run(tmp_path, make_run("mano", MANO))
    torch.save(nn.Module.state_dict(wider), tmp_path / "parameters.pt")
    with pytest.raises(InputError, match=r"are not those of mano with .*'hidden_channels': 8"):
        load_run(tmp_path)
    save_run(tmp_path, make_run("mano", MANO))
    write_weights(tmp_path / "model.safetensors", nn.Module.state_dict(wider))
    with pytest.raises(
        InputError, match=r"are not those of mano with .*'hidden_channels': 8.*expected real \(8,\)"
    ):
        load_run(tmp_path)


def test_the_card_says_what_the_run_is_and_keeps_what_is_written_into_it(tmp_path: Path) -> None:
    run = make_run("mano", MANO)
    run.training.update(title="Darcy flow", epochs=3, units={"a": "m2", "u": "Pa"}, store="/home/me/x.zarr")
    save_run(tmp_path, run)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mano_op\n")
    for line in (
        "# mano: a to u",
        f"of {run.n_parameters:,} parameters",
        "| a | input | m2 | 2 | 3 |  |",
        "| u | output | Pa | -1 | 0.5 |  |",
        "| hidden_channels | 8 |",
        "| title | Darcy flow |",
        "| epochs | 3 |",
        "| training error | 0.5 |",
        "Not judged",
    ):
        assert line in card
    assert "/home/me" not in card  # of the machine that trained, nobody else's business

    (tmp_path / "README.md").write_text(card + "\nWritten by hand.\n")
    write_evaluation(tmp_path, "| 8 | 3 % |")
    judged = (tmp_path / "README.md").read_text()
    assert "| 8 | 3 % |" in judged and "Not judged" not in judged
    assert judged.endswith("\nWritten by hand.\n") and judged.startswith(card[:100])
    write_evaluation(tmp_path, "| 8 | 2 % |")
    assert "3 %" not in (tmp_path / "README.md").read_text()
    with pytest.raises(InputError, match=r"holds no run\.json"):
        write_evaluation(tmp_path / "absent", "")


def test_unknown_models_and_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"there is no model 'mono'; neuraloperator knows .*fno.*mano"):
        build_model("mono", {})
    with pytest.raises(InputError, match=r"there is no model 'mannno'.*; did you mean 'mano'"):
        build_model("mannno", {})
    with pytest.raises(
        InputError, match=r"fno has no option n_mode; it has n_modes.* did you mean 'n_modes'"
    ):
        build_model("fno", {"n_mode": [4, 4]})
