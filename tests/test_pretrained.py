"""Models as folders to share: read back as written; whatever else is in them is an error, and soon."""

import hashlib
import json
import re
import shutil
import sys
import types
from time import perf_counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from mano_op import MANO, InputError, PublishedMANO

OPTIONS = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "reference_shape": [6, 8]}
OPTIONS |= {"periodic": [False, True]}


def small(**options):
    torch.manual_seed(0)
    return MANO(1, 1, **{**OPTIONS, **options}).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    small().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def change(folder, **entries):
    """Change a configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_model_read_back_is_the_same(dtype, tmp_path):
    model = small(boundary_values=[0.5], periodic=False).to(dtype)
    model.save_pretrained(tmp_path / "model")
    found = MANO.from_pretrained(tmp_path / "model")
    assert not found.training
    for shape in ((6, 8), (9, 12), (5, 7)):
        x = torch.randn(2, 1, *shape, dtype=dtype)
        assert found(x).dtype == dtype
        assert torch.equal(found(x), model(x))
    found.train()(torch.randn(2, 1, 6, 8, dtype=dtype)).sum().backward()  # its parameters can be trained
    assert all(p.grad is not None for p in found.parameters())


def test_reference_of_the_training_is_kept(tmp_path):
    model = small(reference_shape=None).train()
    model(torch.randn(1, 1, 10, 12))
    model.save_pretrained(tmp_path)
    assert MANO.from_pretrained(tmp_path).reference_shape == (10, 12)


def test_files_are_what_the_hub_expects(saved):
    """Any reader of safetensors finds the parameters by their names."""
    tensors = load_file(saved / "model.safetensors")
    expected = nn.Module.state_dict(small())
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    config = json.loads((saved / "config.json").read_text())
    assert config["arch"] == "mano"
    assert config["options"]["periodic"] == [False, True]
    content = (saved / "model.safetensors").read_bytes()
    assert config["weights"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_models_of_another_class_are_refused(saved):
    with pytest.raises(InputError, match="holds a mano, expected a PublishedMANO"):
        PublishedMANO.from_pretrained(saved)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": "other"}, "has format 'other' version 1, expected 'mano_op model' version 1"),
        ({"format_version": 2}, "version 2, expected 'mano_op model' version 1: use the release"),
        ({"version": "1"}, r"describes version '1' of mano, .* has version '4': use the release that"),
        ({"arch": "os.system"}, "there is no model 'os.system'"),
        ({"arch": 3}, "arch is 3: Input should be a valid string. Restore"),
        ({"options": []}, r"options is \[\]: Input should be an object"),
        ({"options": {"in_channels": 1}}, "mano needs out_channels"),
        ({"weights": None}, "weights is None: Input should be"),
        ({"weights": {"sha256": 3}}, r"weights\.sha256 is 3: Input should be a valid string"),
    ],
)
def test_other_configurations_are_refused(entries, message, copy):
    change(copy, **entries)
    with pytest.raises(InputError, match=message):
        MANO.from_pretrained(copy)


@pytest.mark.parametrize(
    "options",
    [
        {"n_layers": 10**4000},
        {"n_levels": 10**6},
        {"hidden_channels": 10**6, "n_heads": 10**6},
        {"reference_shape": [10**9, 10**9]},
        {"window": -(10**30)},
        {"window": 1e300},
        {"in_channels": True},
        {"periodic": "__import__('os')"},
        {"reference_shape": [[[[]]]]},
        {"n_dim": 3},
    ],
    ids=lambda options: f"{next(iter(options))}",
)
def test_claims_of_a_configuration_are_not_believed(options, copy):
    """Refused before anything of that size is made: soon, and without the memory."""
    change(copy, options={"in_channels": 1, "out_channels": 1, **OPTIONS, **options})
    start = perf_counter()
    with pytest.raises(InputError):
        MANO.from_pretrained(copy)
    assert perf_counter() - start < 10


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": "mano_op model", "format_version": NaN}',
        b'{"format_version": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
        b'"text"',
        b"null",
        b"cos\nsystem\n(S'touch it_ran'\ntR.",
    ],
    ids=["empty", "deep list", "deep object", "NaN", "long number", "no text", "string", "null", "pickle"],
)
def test_hostile_json_is_refused(text, copy):
    (copy / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=r"config\.json"):
        MANO.from_pretrained(copy)


def test_huge_configuration_is_not_read(copy):
    with (copy / "config.json").open("r+b") as file:
        file.truncate(2**27)  # of which a file system keeps nothing
    with pytest.raises(InputError, match="has 134217728 bytes, expected at most"):
        MANO.from_pretrained(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_files_are_refused(name, saved, copy, place, bit, cut):
    """A flipped bit, or a file cut short. A configuration may then be that of another model that fits."""
    content = bytearray((saved / name).read_bytes())
    at = int(place * len(content))
    content[at] ^= 1 << bit
    (copy / name).write_bytes(content[:at] if cut else content)
    try:
        MANO.from_pretrained(copy)
    except InputError:
        return
    assert name == "config.json" and not cut


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=64), length=st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 200)))
def test_junk_in_place_of_parameters_is_refused(copy, junk, length):
    """Also where the check sum is left out, and the header claims any length."""
    change(copy, weights={"file": "model.safetensors"})
    (copy / "model.safetensors").write_bytes(length.to_bytes(8, "little") + junk)
    with pytest.raises(InputError, match=r"safetensors"):
        MANO.from_pretrained(copy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors | {"extra": torch.zeros(2)},
        lambda tensors: {name: t for name, t in tensors.items() if name != "lifting.weight"},
        lambda tensors: tensors | {"lifting.weight": torch.zeros(8, 40)},
        lambda tensors: tensors | {"lifting.weight": torch.zeros(0)},
        lambda tensors: tensors | {"lifting.weight": tensors["lifting.weight"].to(torch.int64)},
        lambda tensors: tensors | {"lifting.weight": tensors["lifting.weight"].to(torch.complex64)},
        lambda tensors: tensors | {"lifting.weight": tensors["lifting.weight"].to(torch.float8_e5m2)},
        lambda tensors: tensors | {"_extra_state": tensors["_extra_state"].double()},
        lambda tensors: {},
    ],
    ids=["more", "fewer", "wider", "empty", "whole", "complex", "eighths", "real", "none"],
)
def test_parameters_of_other_shapes_are_refused(damage, copy):
    change(copy, weights={"file": "model.safetensors"})
    path = copy / "model.safetensors"
    save_file(damage(load_file(path)), path)
    with pytest.raises(InputError, match=r"are not those of mano|of a model with 0 tensors"):
        MANO.from_pretrained(copy)


def test_missing_folders_and_files_say_what_to_give(tmp_path, copy):
    with pytest.raises(InputError, match="does not exist: give the folder of a model, or a repository"):
        MANO.from_pretrained(tmp_path / "absent")
    with pytest.raises(InputError, match=re.escape("a/b/c does not exist")):
        MANO.from_pretrained("a/b/c")
    with pytest.raises(InputError, match=r"holds no config\.json"):
        MANO.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a folder, which has none"):
        MANO.from_pretrained(copy, revision="main")
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"cannot be read as safetensors \(.*No such file.*copy it"):
        MANO.from_pretrained(copy)


def test_repository_of_the_hub_is_fetched(saved, monkeypatch):
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(saved)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download)
    )
    model = MANO.from_pretrained("someone/darcy", revision="v1")
    assert torch.equal(model.lifting.weight, small().lifting.weight)
    [(repository, revision, patterns)] = asked
    assert (repository, revision) == ("someone/darcy", "v1")
    assert not any(name.endswith((".pt", ".bin", ".pkl", ".py")) for name in patterns)

    def not_found(*args, **options):
        raise OSError("404: no such repository")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=not_found))
    with pytest.raises(InputError, match=r"cannot be fetched from the Hugging Face Hub \(404"):
        MANO.from_pretrained("someone/darcy")

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'mano_op\[hub\]'"):
        MANO.from_pretrained("someone/darcy")
