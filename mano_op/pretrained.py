"""A model in a folder that can be shared: its configuration as JSON, its parameters as safetensors.

======================  =====================================================================================
file                    holds
======================  =====================================================================================
``config.json``         the model's name in neuraloperator's registry, its version and options, the releases
                        that wrote it, and the SHA-256 of the parameters
``model.safetensors``   the parameters and buffers
``README.md``           the model card, where there is one; see `mano_op.card`
======================  =====================================================================================

These are the names that the Hugging Face Hub knows, so the folder can be uploaded as it is. Nothing in it is
run when it is read. What a configuration claims is compared with the parameters that lie beside it before
anything of that size is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mano_op.description import dumps, entry, read_description
from mano_op.errors import InputError
from mano_op.files import make_folder, write_file
from mano_op.registry import build_model, model_class
from mano_op.weights import Entry, parameters_of, read_weights, weights_header, write_weights

FORMAT, FORMAT_VERSION = "mano_op model", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"

# No side of a grid, number of channels, ... is larger. Of layers, levels and blocks each has parameters of
# its own.
_MOST = 10**6
_COUNTED = ("n_layers", "n_levels", "depth", "depths")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def save_model(folder: str | Path, model: nn.Module, arch: str, options: Mapping[str, Any]) -> None:
    """Write a model into a folder, which is made if need be. ``config.json`` is written last.

    Parameters
    ----------
    folder : path
    model : nn.Module
    arch : str
        Its name in neuraloperator's registry.
    options : mapping
        Its constructor's arguments, plain values.
    """
    folder = make_folder(folder)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arch": arch.lower(),
        "version": str(getattr(type(model), "_version", None)),
        "options": {name: _plain(value) for name, value in options.items()},
        "library_name": "mano_op",
        "versions": {name: version(name) for name in ("mano_op", "neuraloperator", "torch")},
    }
    # A model that is replaced is none from here on until the new one is whole.
    (folder / CONFIG).unlink(missing_ok=True)
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
        If the folder holds no model, or one of another version; if a file of it is damaged; or if the
        parameters are not those of the model that is described.
    """
    folder = fetched(folder, revision)
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} holds no {CONFIG}, so no model: make one with `save_pretrained`")
    described = read_description(path, FORMAT, FORMAT_VERSION)
    arch, options = entry(path, described, "arch", str), entry(path, described, "options", dict)
    digest = weights_digest(folder, described)
    cls = model_class(arch)
    mine = str(getattr(cls, "_version", None))
    if described.get("version") != mine:
        raise InputError(
            f"{path} describes version {described.get('version')!r:.40} of {arch}, {_here()} has version "
            f"{mine!r}: use the release that wrote it ({described.get('versions')!r:.200}), or train again"
        )
    header = weights_header(folder / WEIGHTS)
    _check_size(path, options, len(header))
    with torch.device("meta"):  # shapes without numbers
        expected = parameters_of(build_model(arch, options))
    _check_names(folder, arch, options, header, {name: Entry.of(t) for name, t in expected.items()})
    tensors = read_weights(folder / WEIGHTS, digest)
    model = build_model(arch, options)
    # Assigned, so that they keep their precision.
    nn.Module.load_state_dict(model, tensors, assign=True)
    return model.eval(), arch, options


def weights_digest(folder: Path, description: Mapping[str, Any] | None = None) -> str | None:
    """Return the SHA-256 of the weights that a folder's configuration states."""
    path = folder / CONFIG
    described = read_description(path, FORMAT, FORMAT_VERSION) if description is None else description
    digest = entry(path, described, "weights", dict).get("sha256")
    if not isinstance(digest, str | None):
        raise InputError(f"{path}: the sha256 of the weights is {digest!r}, expected a str: restore the file")
    return digest


def fetched(folder: str | Path, revision: str | None = None) -> Path:
    """A folder that is there, or the local copy of a repository of the Hugging Face Hub.

    Raises
    ------
    InputError
        If it is neither, or what fetches it is not installed.
    """
    here = Path(folder)
    if here.is_dir():
        if revision is not None:
            raise InputError(f"revision={revision!r}, but {folder} is a folder, which has none: leave it out")
        return here
    if isinstance(folder, Path) or not _REPOSITORY.fullmatch(folder):
        raise InputError(
            f"{folder} does not exist: give the folder of a model, or a repository, 'owner/name'"
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise InputError(
            f"{folder} is no folder here; to fetch it from the Hugging Face Hub: pip install 'mano_op[hub]'"
        ) from error
    names = [CONFIG, WEIGHTS, "run.json", "README.md"]
    try:
        return Path(snapshot_download(folder, revision=revision, allow_patterns=names))
    except (OSError, ValueError) as error:  # no such repository or revision, no network, no such name
        raise InputError(
            f"{folder} is no folder here, and cannot be fetched from the Hugging Face Hub ({error}): check "
            "the name, the revision and the network"
        ) from error


def _check_size(path: Path, options: Mapping[str, Any], tensors: int) -> None:
    """Refuse numbers of which building the model would take ages, before that."""
    for name, value in options.items():
        most = tensors if name in _COUNTED else _MOST
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > most:
                raise InputError(
                    f"{path}: option {name}={value!r:.60} of a model with {tensors} tensors, expected at "
                    f"most {most}: the file is damaged, or not meant well"
                )


def _check_names(
    folder: Path,
    arch: str,
    options: Mapping[str, Any],
    theirs: Mapping[str, Entry],
    mine: Mapping[str, Entry],
) -> None:
    """Compare the parameters of a file with those of the model."""

    def told(entries: Mapping[str, Entry], name: str) -> str:
        return " ".join(map(str, entries[name])) if name in entries else "none"

    wrong = [
        f"{name} is {told(theirs, name)}, expected {told(mine, name)}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"the parameters in {folder / WEIGHTS} are not those of {arch} with {options}: "
            f"{'; '.join(wrong[:3])}{more}: take both files from the same model"
        )


def _plain(value: Any) -> Any:
    """As JSON has it: a tuple is a list there."""
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _here() -> str:
    return f"mano_op {version('mano_op')} with neuraloperator {version('neuraloperator')}"
