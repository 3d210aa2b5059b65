"""What the state dicts and checkpoints of the models hold, and which of them are refused."""

from pathlib import Path

import pytest
import torch
from test_mano import OPTIONS, build
from test_multipole import draw

from mano_op.errors import InputError
from mano_op.models.data_model import metadata_of
from mano_op.models.mano import MANO
from mano_op.models.published import PublishedMANO


def test_state_dict_has_the_options_of_the_root_alone():
    model = build()
    state = model.state_dict()
    origin = {"args": [], "_name": "MANO", "_version": "4"}
    assert metadata_of(state) == {"in_channels": 2, "out_channels": 3} | origin | OPTIONS
    state["_metadata"].zero_()
    assert metadata_of(model.state_dict())["window"] == 3
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    nested = torch.nn.ModuleDict({"a": model, "b": torch.nn.Sequential(model)}).state_dict()
    kept = ["_extra_state", *(key for key, _ in model.named_parameters())]
    assert set(nested) == {prefix + key for prefix in ("a.", "b.0.") for key in kept}


def test_loading_a_state_dict_leaves_it_as_it_is():
    source, target = build(), build(seed=7)
    state = source.state_dict()
    before = dict(state)
    assert not target.load_state_dict(state).missing_keys
    assert state.keys() == before.keys() and all(state[key] is before[key] for key in state)
    assert torch.equal(target(x := draw(1, 2, 6, 7)), source(x))
    options = {"in_channels": 2, "out_channels": 3} | OPTIONS | {"periodic": [False, False]}
    by_name = MANO(**options).double()  # what is equal, given in another way
    by_name.load_state_dict(MANO(2, 3, **(OPTIONS | {"periodic": (False, False)})).double().state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: PublishedMANO(2, 3, hidden_channels=6, n_heads=3),
            "checkpoint of MANO_published version 1, expected MANO version 4: load it with its own class",
        ),
        (
            lambda: build(hidden_channels=9),
            "belong to a MANO with {'hidden_channels': 9}, this one has {'hidden_channels': 6}: build it",
        ),
        (  # of the same shapes, and another function all the same
            lambda: build(window=4),
            "with {'window': 4}, this one has {'window': 3}: .* take '_metadata' out of the state dict",
        ),
    ],
)
def test_state_dicts_of_other_models_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        build().load_state_dict(other().state_dict())


def test_parameters_alone_load_into_any_configuration_they_fit():
    state = build(window=4).state_dict()
    del state["_metadata"]
    target = build(seed=3)
    target.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in target.named_parameters())


def test_checkpoint_of_another_version_is_refused(tmp_path):
    build().save_checkpoint(tmp_path, "model")
    metadata = torch.load(tmp_path / "model_metadata.pkl")
    torch.save(metadata | {"_version": "0"}, tmp_path / "model_metadata.pkl")
    with pytest.raises(InputError, match="checkpoint of MANO version 0, expected MANO version 4: load it"):
        MANO.from_checkpoint(tmp_path, "model")


class RunsCode:
    """Unpickled, this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["model_metadata.pkl", "model_state_dict.pt"])
def test_code_in_a_checkpoint_is_not_run(file, tmp_path):
    build().save_checkpoint(tmp_path, "model")
    content = torch.load(tmp_path / file)
    torch.save(content | {"window": RunsCode(tmp_path / "was here")}, tmp_path / file)
    with pytest.raises(InputError, match=f"{file} holds more than tensors and plain values"):
        MANO.from_checkpoint(tmp_path, "model")
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("file", ["model_metadata.pkl", "model_state_dict.pt"])
def test_broken_checkpoints_are_named(file, tmp_path):
    build().save_checkpoint(tmp_path, "model")
    whole = (tmp_path / file).read_bytes()
    for part in (b"", whole[: len(whole) // 2], whole[:-100]):
        (tmp_path / file).write_bytes(part)
        with pytest.raises(InputError, match=f"{file} cannot be read .*: if it was cut short"):
            MANO.from_checkpoint(tmp_path, "model")
    torch.save([1, 2], tmp_path / file)
    with pytest.raises(InputError, match=f"{file} .*it holds a list, expected a dictionary of tensors"):
        MANO.from_checkpoint(tmp_path, "model")


def test_missing_checkpoints_say_what_there_is(tmp_path):
    build().save_checkpoint(tmp_path, "epoch_10")
    with pytest.raises(
        InputError, match=r"epoch_20_metadata.pkl. The folder holds \['epoch_10_metadata.pkl'\]"
    ):
        MANO.from_checkpoint(tmp_path, "epoch_20")
    with pytest.raises(InputError, match="Give the folder and name that save_checkpoint was called with"):
        MANO.from_checkpoint(tmp_path / "elsewhere", "epoch_10")


def test_checkpoint_of_a_compiled_model_is_that_of_the_model(tmp_path):
    """Its state dict has other names; what it saves has not."""
    model, x = build().float(), draw(1, 2, 8, 8).float()
    compiled = torch.compile(model, backend="eager")
    assert all(name.startswith("_orig_mod.") for name, _ in compiled.named_parameters())
    compiled.save_checkpoint(tmp_path, "model")
    assert torch.equal(MANO.from_checkpoint(tmp_path, "model")(x), model(x))
