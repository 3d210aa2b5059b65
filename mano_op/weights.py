"""The parameters of a model as a safetensors file: tensors with names, and nothing that could be run.

A pickle, which ``torch.save`` writes, is a program; even its restricted reader has had holes. A safetensors
file is a header of names, types and shapes, and the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from mano_op.errors import InputError, refusing
from mano_op.files import write_file

# The kind of each type of safetensors: parameters may be of any precision.
_KINDS = {
    **dict.fromkeys(("F16", "BF16", "F32", "F64"), "real"),
    **dict.fromkeys(("C64", "C128"), "complex"),
    **dict.fromkeys(("I8", "I16", "I32", "I64", "U8"), "whole"),
    "BOOL": "boolean",
}


class Entry(NamedTuple):
    """The kind of a tensor's numbers, and its shape."""

    kind: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.shape))}".rstrip()


def entries_of(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Return the entries of tensors, which may be without numbers."""

    def kind(t: Tensor) -> str:
        if t.is_floating_point() or t.is_complex():
            return "real" if t.is_floating_point() else "complex"
        return "boolean" if t.dtype == torch.bool else "whole"

    return {name: Entry(kind(t), tuple(t.shape)) for name, t in tensors.items()}


def check_entries(
    saved: Mapping[str, Entry], expected: Mapping[str, Entry], problem: str, remedy: str
) -> None:
    """Refuse tensors of other names, kinds or shapes than expected."""
    wrong = [
        f"{name} is {saved.get(name, 'missing')}, expected {expected.get(name, 'missing')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{problem}: {'; '.join(wrong[:3])}{more}: {remedy}")


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, without the arguments in neuraloperator's state dicts."""
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
    """Return names, kinds and shapes of the tensors in a file, of which nothing else is read."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        return {
            name: Entry(_KINDS.get(tensor.get_dtype(), tensor.get_dtype()), tuple(tensor.get_shape()))
            for name, tensor in slices.items()
        }


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file; damage to the numbers is noticed by the `sha256` of `write_weights`."""
    with _opened(path) as file:
        if sha256 is not None:
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            if digest != sha256:
                raise InputError(
                    f"{path} is not as it was written, its sha256 is {digest[:12]}..., expected "
                    f"{sha256[:12]}...: copy it again"
                )
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    what, remedy = f"{path} cannot be read as safetensors", "copy it there, again if it was cut short"
    with refusing(what, remedy, SafetensorError, OSError), safe_open(path, framework="pt") as file:
        yield file
