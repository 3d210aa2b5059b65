"""Runs: what is written is what is read, and what cannot be read says why."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from training import FILES, FNO, assert_same_run, train_images

from mano_op import InputError
from mano_op.data.processor import FieldProcessor
from mano_op.registry import build_model
from mano_op.runs import Run, load_run, save_run, write_evaluation
from mano_op.vision.images import Images
from mano_op.vision.processor import ImageProcessor
from mano_op.weights import read_weights

CHANNELS = {"in_channels": 1, "out_channels": 1}
MANO = {**CHANNELS, "hidden_channels": 8, "n_layers": 1, "n_heads": 2, "n_levels": 2}
PUBLISHED = {**CHANNELS, "hidden_channels": 8, "n_layers": 1, "n_heads": 2}
POOLED = {"in_channels": 1, "n_classes": 3}
VIT = {**POOLED, "image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "n_heads": 2}
CLASSES = ["cat", "dog", "owl"]
DRAWN = {"kind": "digits", "digest": "", "split": {"validation": 2, "seed": 0}}


def make_run(arch: str = "mano", options: dict[str, Any] = MANO, **training: Any) -> Run:
    torch.manual_seed(0)
    model = build_model(arch, options).eval()
    history = [{"epoch": i, "seconds": 1.0, "training_error": 1 / i} for i in (1, 2)]
    if "n_classes" in options:
        training = {"task": "images", "image_size": [8, 8], "classes": CLASSES, **training}
        return Run(model, ImageProcessor([0.5], [0.25], 3, 0.1).eval(), arch, options, training, history)
    training = {"task": "fields", "resolution": "r8", **training}
    processor = FieldProcessor({"a": {"mean": 2.0, "std": 3.0}}, {"u": {"mean": -1.0, "std": 0.5}})
    return Run(model, processor.eval(), arch, options, training, history)


@pytest.fixture
def field_run(tmp_path: Path) -> Path:
    save_run(tmp_path / "fields", make_run())
    return tmp_path / "fields"


@pytest.fixture
def image_run(tmp_path: Path) -> Path:
    save_run(tmp_path / "images", make_run("test_pooled", POOLED))
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("mano", MANO),
        ("fno", {**CHANNELS, **FNO["options"]}),  # type: ignore[dict-item]
        ("mano_published", PUBLISHED),
        ("test_pooled", POOLED),
        ("vit_classifier", VIT),
    ],
)
def test_run_read_back_is_the_same_and_all_of_it_is_data(
    arch: str, options: dict[str, Any], tmp_path: Path
) -> None:
    run = make_run(arch, options)
    run.save(tmp_path / "run")
    read = load_run(tmp_path / "run", task=run.task)
    assert_same_run(read, run)
    assert (read.classes, read.resolutions) == (run.classes, run.resolutions)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(read.predict(x), run.predict(x))
    assert not read.model.training and not read.processor.training
    # Nothing needs unpickling, not even FNO's options, which are functions.
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    tensors = read_weights(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in tensors.items())
    for name in ("run.json", "config.json"):
        json.loads((tmp_path / "run" / name).read_text())


def test_predictions_are_in_physical_units() -> None:
    """The processor and the model by hand, of arrays and of tensors, in any mode they were left in."""
    run, x = make_run(), 2 + 3 * np.random.default_rng(0).normal(size=(2, 1, 10, 9))
    with torch.no_grad():
        expected = -1 + 0.5 * run.model((torch.from_numpy(x).float() - 2) / 3)
    run.model.train()
    run.processor.train()
    for given in (x, torch.from_numpy(x), xr.DataArray(x)):
        found = run.predict(given)
        torch.testing.assert_close(found, expected)
        assert found.dtype == torch.float32 and not found.requires_grad
    with pytest.raises(InputError, match=r"x of shape \(2, 2, 10, 9\) .* has 2 channels; expected 1: a"):
        run.predict(x[:, [0, 0]])
    with pytest.raises(InputError, match=r"x of shape \(1,\), expected \(batch, in_channels, \*grid\)"):
        run.predict([1.0])


def test_predictions_of_images_are_logits() -> None:
    run, x = make_run("test_pooled", POOLED), np.random.default_rng(0).uniform(size=(2, 1, 12, 8))
    with torch.no_grad():
        expected = run.model((torch.from_numpy(x).float() - 0.5) / 0.25)
    torch.testing.assert_close(run.predict(x), expected)
    with pytest.raises(InputError, match="expected 1 channels"):
        run.predict(x[:, [0, 0, 0]])


def test_predictions_take_what_else_the_model_takes() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
            return x * coordinates

    run = make_run()
    scaled = Run(Scaled(), run.processor, "scaled", {}, {}, [])
    assert scaled.predict(np.full((1, 1, 4), 5.0), coordinates=torch.full((1, 1, 4), 4.0)).unique() == 1.0


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (
            make_run(),
            "Run(mano of 14,873 parameters: a to u, trained at r8 for 2 epochs, training error 0.5)",
        ),
        (
            make_run(resolution={"resolutions": ["r8", "r16"], "ratios": [3, 1]}, best={"epoch": 1}),
            # The errors of the epoch whose parameters it has.
            "Run(mano of 14,873 parameters: a to u, trained at r8+r16 for 2 epochs, training error 1)",
        ),
        (
            make_run("test_pooled", POOLED),
            "Run(test_pooled of 147 parameters: images to 3 classes, trained at 8x8 for 2 epochs, training "
            "error 0.5)",
        ),
    ],
    ids=["fields", "mixed", "images"],
)
def test_run_says_what_it_is(run: Run, text: str) -> None:
    assert repr(run) == text


def test_interrupted_write_is_no_run(field_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is an interrupted replacement: not the old description with the new parameters."""

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mano_op.files.os.replace", fail)
    for folder in (field_run, field_run / "new"):
        with pytest.raises(KeyboardInterrupt):
            save_run(folder, make_run())
        with pytest.raises(InputError, match=r"holds no run\.json, so it is no finished run"):
            load_run(folder)


def test_run_with_infinite_numbers_is_not_written(field_run: Path) -> None:
    before = {path.name: path.read_bytes() for path in field_run.iterdir()}
    run = make_run(seconds=float("nan"))
    for folder in (field_run, field_run.parent / "new"):
        with pytest.raises(ValueError, match="not JSON compliant"):
            save_run(folder, run)
    assert {path.name: path.read_bytes() for path in field_run.iterdir()} == before
    assert not list((field_run.parent / "new").iterdir())


@pytest.mark.parametrize(
    ("task", "entry", "value", "message"),
    [
        ("fields", "format", "other", "format 'other' version 3, expected 'mano_op run' version 3: use"),
        ("fields", "format_version", 2, "version 2, expected 'mano_op run' version 3"),
        ("fields", "processor", None, "processor is None: Input should be an object. Restore"),
        ("fields", "processor", {"inputs": {"a": {}}, "outputs": {}}, "does not describe a run of fields"),
        ("fields", "history", {}, "history is {}: Input should be a valid array"),
        ("fields", "training", None, "training is None: Input should be an object"),
        ("fields", "training", {}, r"training\.task is {}: Field required"),
        ("fields", "training.task", "images", "is of the task 'images', expected fields: give a run of"),
        ("fields", "training.resolution", {"ratios": [1]}, r"training\.resolution"),
        ("fields", "training.best", {"epoch": "2"}, r"training\.best\.epoch is '2': Input should be"),
        ("fields", "training.best", {"epoch": 3}, "the best epoch is 3 of 2"),
        ("images", "training.task", "sounds", r"training\.task is 'sounds': Input should be 'fields' or"),
        ("images", "training.classes", None, r"training\.classes is None: Input should be a valid array"),
        ("images", "training.classes", ["cat", "dog"], r"n_classes=3, with \['cat', 'dog'\]"),
        ("images", "training.image_size", [8, -8], r"training\.image_size\.1 is -8: Input should be greater"),
        ("images", "training.images", {"kind": "digits"}, r"training\.images\.digest is .*Field required"),
        ("images", "training.images", DRAWN, r"images\.split\.validation is 2: .* expected a part"),
        ("images", "processor", {}, "does not describe a run of images"),
        ("images", "processor.mean", [float("inf")], "is not JSON"),
        ("images", "processor.std", [-1.0], "std=-1.0, expected a finite number, 0 or more"),
    ],
)
def test_damaged_descriptions_are_refused(
    task: str, entry: str, value: Any, message: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue({"fields": "field_run", "images": "image_run"}[task])
    content = json.loads((folder / "run.json").read_text())
    *parents, name = entry.split(".")
    functools.reduce(dict.__getitem__, parents, content)[name] = value
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_run(folder, task=task)  # type: ignore[arg-type]


def test_card_says_what_the_run_is(field_run: Path, image_run: Path) -> None:
    best, units = {"epoch": 1, "training_error": 1.0}, {"a": "m2", "u": "Pa"}
    run = make_run(title="Darcy flow", epochs=3, units=units, store="/home/me/x.zarr", best=best, seed=0)
    save_run(field_run, run)
    for folder, lines in (
        (
            field_run,
            [
                "# mano: a to u",
                f"with {run.n_parameters:,} parameters",
                "| a | input | m2 | 2 | 3 |  |",
                "| u | output | Pa | -1 | 0.5 |  |",
                "| hidden_channels | 8 |",
                "| title | Darcy flow |",
                "| epochs | 3 |",
                "| seed | 0 |",
                "| training error | 1 |",  # of the epoch whose parameters it has
                "Not evaluated",
            ],
        ),
        (
            image_run,
            [
                "# test_pooled: images to 3 classes",
                "cat, dog, owl",
                "| 0 | 0.5 | 0.25 |",
                "| training error | 0.5 |",
            ],
        ),
    ):
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: mano_op\n")
        assert [line for line in lines if line not in card] == []
        assert max(map(len, card.splitlines())) <= 120
        assert "/home/me" not in card  # of the machine that trained, nobody else's business
        # Every row of a table has as many cells as its header.
        for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
            assert len({row.count(" | ") for row in table.splitlines()}) == 1, table


def test_evaluation_has_one_place_in_the_card(images: Images, tmp_path: Path) -> None:
    """What is written by hand stays, and a class may be called anything."""
    begin, end = "<!-- judged: begin -->", "<!-- judged: end -->"
    classes = (begin, end, "*b* & `c`\n# d", "golden_retriever", "_e_", *images.classes[5:])
    named = Images(images.source, images.splits, classes, 1, (8, 8), images.origin)
    run = train_images(named, tmp_path, epochs=1)
    path = tmp_path / "README.md"
    [shown] = [line for line in path.read_text().splitlines() if "golden" in line]
    escaped = f"{begin}, {end}".replace("<", "&lt;").replace(">", "&gt;")
    assert shown == rf"{escaped}, \*b\* &amp; \`c\` \# d, golden_retriever, \_e\_, 5, 6, 7, 8, 9"
    card = path.read_text() + "\nWritten by hand.\n"
    path.write_text(card)
    before, rest = card.split(begin)
    after = rest.split(end)[1]
    for text in ("| 8 | 3 % |", "| 8 | 2 % |"):
        write_evaluation(tmp_path, text)
        assert path.read_text() == f"{before}{begin}\n{text}\n{end}{after}"
    assert load_run(tmp_path, task="images").classes == run.classes == classes
    with pytest.raises(InputError, match=r"holds no run\.json"):
        write_evaluation(tmp_path / "absent", "")
