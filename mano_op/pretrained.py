"""A model in a folder that can be shared: its configuration as JSON, its parameters as safetensors.

======================  =====================================================================================
file                    holds
======================  =====================================================================================
``config.json``         the model's name in neuraloperator's registry, its version and options, the releases
                        that wrote it, and the SHA-256 of the parameters
``model.safetensors``   the parameters and buffers
``README.md``           the model card, where there is one; see `mano_op.card`
======================  =====================================================================================

The Hugging Face Hub knows these names, so the folder can be uploaded. Nothing in it is run when it is read,
and a configuration is compared with the parameters beside it before anything of its size is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mano_op.description import dumps, read_description
from mano_op.errors import InputError
from mano_op.files import make_folder, write_file
from mano_op.registry import build_model, model_class
from mano_op.weights import (
    check_entries,
    entries_of,
    parameters_of,
    read_weights,
    weights_header,
    write_weights,
)

FORMAT, FORMAT_VERSION = "mano_op model", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"

# No side of a grid, number of channels, ... is larger. Of layers, levels and blocks each has parameters of
# its own.
_MOST = 10**6
_COUNTED = ("n_layers", "n_levels", "depth", "depths")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass
class _Weights:
    sha256: str | None = None


@dataclass
class _Description:
    """The types of the entries of ``config.json``."""

    arch: str
    options: dict[str, Any]
    weights: _Weights
    version: str = "None"
    versions: dict[str, str] | None = None


def save_model(folder: str | Path, model: nn.Module, arch: str, options: Mapping[str, Any]) -> None:
    """Write a model into a folder, which is made if need be, with its arguments, plain values.

    ``config.json`` is written last.
    """
    folder = make_folder(folder)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arch": arch.lower(),
        "version": str(getattr(type(model), "_version", None)),
        "options": dict(options),
        "library_name": "mano_op",
        "versions": {name: version(name) for name in ("mano_op", "neuraloperator", "torch")},
    }
    (folder / CONFIG).unlink(missing_ok=True)  # until the new model is whole there is none
    digest = write_weights(folder / WEIGHTS, parameters_of(model))
    weights = {"file": WEIGHTS, "sha256": digest}
    write_file(folder / CONFIG, dumps({**description, "weights": weights}))


def load_model(folder: str | Path, *, revision: str | None = None) -> tuple[nn.Module, str, dict[str, Any]]:
    """Read what `save_model` wrote.

    Parameters
    ----------
    folder : path or str
        A folder, or a repository of the Hugging Face Hub, ``"owner/name"``, which is fetched.
    revision : str, optional
        Of the repository: a branch, a tag or a commit.

    Returns
    -------
    model, arch, options
        The model is in evaluation mode.

    Raises
    ------
    InputError
        If the folder holds no model, one of another version, a damaged file, or other parameters.
    """
    folder = fetched(folder, revision)
    described = _read(folder)
    arch, options = described.arch, described.options
    own_version = str(getattr(model_class(arch), "_version", None))
    if described.version != own_version:
        raise InputError(
            f"{folder / CONFIG} describes version {described.version!r:.40} of {arch}, mano_op "
            f"{version('mano_op')} with neuraloperator {version('neuraloperator')} has version "
            f"{own_version!r}: use the release that wrote it ({described.versions!r:.200}), or train again"
        )
    header = weights_header(folder / WEIGHTS)
    _check_size(folder / CONFIG, options, len(header))
    with torch.device("meta"):  # shapes without numbers
        expected = parameters_of(build_model(arch, options))
    problem = f"the parameters in {folder / WEIGHTS} are not those of {arch} with {options}"
    check_entries(header, entries_of(expected), problem, "take both files from the same model")
    tensors = read_weights(folder / WEIGHTS, described.weights.sha256)
    model = build_model(arch, options)
    # Assigned, so that they keep their precision.
    nn.Module.load_state_dict(model, tensors, assign=True)
    return model.eval(), arch, options


def _read(folder: Path) -> _Description:
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} holds no {CONFIG}, so no model: make one with `save_pretrained`")
    return read_description(path, FORMAT, FORMAT_VERSION, _Description)[1]


def weights_digest(folder: Path) -> str | None:
    """Return the SHA-256 of the weights that a folder's configuration states."""
    return _read(folder).weights.sha256


def fetched(folder: str | Path, revision: str | None = None) -> Path:
    """Return a folder that exists, or the local copy of a repository of the Hugging Face Hub."""
    local = Path(folder)
    if local.is_dir():
        if revision is not None:
            raise InputError(f"revision={revision!r}, but {folder} is a folder, which has none: leave it out")
        return local
    if isinstance(folder, Path) or not _REPOSITORY.fullmatch(folder):
        raise InputError(
            f"{folder} does not exist: give the folder of a model, or a repository, 'owner/name'"
        )
    try:
        from huggingface_hub import snapshot_download

        names = [CONFIG, WEIGHTS, "run.json", "README.md"]
        return Path(snapshot_download(folder, revision=revision, allow_patterns=names))
    except (ImportError, OSError, ValueError) as error:  # no such repository or revision, no network, ...
        missing = isinstance(error, ImportError)
        remedy = "pip install 'mano_op[hub]'" if missing else "check the name, the revision and the network"
        raise InputError(
            f"{folder} is no folder here, and cannot be fetched from the Hugging Face Hub ({error}): {remedy}"
        ) from error


def _check_size(path: Path, options: Mapping[str, Any], tensors: int) -> None:
    """Refuse numbers of which building the model would take ages, before it is built."""
    for name, value in options.items():
        most = tensors if name in _COUNTED else _MOST
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > most:
                raise InputError(
                    f"{path}: option {name}={value!r:.60} of a model with {tensors} tensors, expected at "
                    f"most {most}: the file is damaged, or not meant well"
                )
