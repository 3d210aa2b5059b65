"""The parameters of a model as a safetensors file: tensors with names, and nothing that could be run.

A pickle, which ``torch.save`` writes, is a program; even its restricted reader has had holes. A safetensors
file is a header of names, types and shapes, and the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.files import write_file

# Of what is read here, what kind of numbers each type of safetensors has: parameters may be of any precision.
_KINDS = {
    **dict.fromkeys(("F16", "BF16", "F32", "F64"), "real"),
    **dict.fromkeys(("C64", "C128"), "complex"),
    **dict.fromkeys(("I8", "I16", "I32", "I64", "U8"), "whole"),
    "BOOL": "boolean",
}


class Entry(NamedTuple):
    """What kind of numbers a tensor has, and its shape."""

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, t: Tensor) -> Entry:
        """Those of a tensor, which may be without numbers.

        Examples
        --------
        >>> Entry.of(torch.zeros(2, 3, dtype=torch.bfloat16, device="meta"))
        Entry(kind='real', shape=(2, 3))
        """
        if t.is_floating_point() or t.is_complex():
            kind = "real" if t.is_floating_point() else "complex"
        else:
            kind = "boolean" if t.dtype == torch.bool else "whole"
        return cls(kind, tuple(t.shape))


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model, and nothing that is no tensor.

    neuraloperator's models put their constructor's arguments, functions among them, into ``state_dict()``.

    Examples
    --------
    >>> list(parameters_of(nn.Linear(1, 1)))
    ['weight', 'bias']
    """
    return {key: value for key, value in model.state_dict().items() if key != "_metadata"}


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors in one piece, and return the SHA-256 of the file.

    Tensors that share memory are written once each, so that any reader finds all names.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.safetensors"
    ...     digest = write_weights(path, {"weight": torch.ones(2, 3)})
    ...     weights_header(path), read_weights(path, digest)["weight"].sum()
    ({'weight': Entry(kind='real', shape=(2, 3))}, tensor(6.))
    """
    separate = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()
    }
    content = to_bytes(separate, {"format": "pt"})
    write_file(path, content)
    return hashlib.sha256(content).hexdigest()


def weights_header(path: Path) -> dict[str, Entry]:
    """Names, kinds and shapes of the tensors in a file, of which nothing else is read.

    Raises
    ------
    InputError
        If there is no such file, or it is none of safetensors.
    """
    _check_there(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {
                name: Entry(_KINDS.get(one.get_dtype(), one.get_dtype()), tuple(one.get_shape()))
                for name, one in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file.

    Parameters
    ----------
    path : path
    sha256 : str, optional
        What `write_weights` returned; without it, damage to the numbers is not noticed.

    Raises
    ------
    InputError
        If there is no such file, it is none of safetensors, or not as it was written.
    """
    _check_there(path)
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise InputError(
                f"{path} is not as it was written, its sha256 is {found[:12]}..., expected {sha256[:12]}...: "
                "copy it again"
            )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the folder that holds it, or copy it there")


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as safetensors ({error}): if it was cut short, copy it again")
