"""neuraloperator's `BaseModel`, with checkpoints that are data and options that are plain values."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from neuralop.models.base_model import BaseModel
from torch import Tensor, nn

from mano_op.errors import InputError, check_options
from mano_op.files import read_tensors
from mano_op.layers.checks import check_field
from mano_op.pretrained import load_model, save_model


class DataModel(BaseModel, name="_data_model"):
    """A model whose checkpoints are data.

    neuraloperator's `BaseModel` keeps the constructor's arguments and writes them into every state dict. Here

    * only the state dict of the model itself has that entry, which a module around it could not load,
    * options are plain values, or refused,
    * files are read with ``weights_only=True``, as data,
    * a checkpoint of another class, version or configuration is refused.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse options that the model does not have, which neuraloperator's base class keeps."""
        known = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
        check_options(cls.__name__, kwargs, known)
        named = dict(zip(known, args, strict=False)) | kwargs
        for name, value in named.items():
            if not _is_plain(value):
                raise InputError(
                    f"{name}={value!r} is of type {type(value).__name__}, expected a bool, int, float, str, "
                    "None, or a list of those: a checkpoint holds nothing else, so convert it"
                )
        # By name: the base class keeps the defaults of positional options.
        instance: Self = super().__new__(cls, **named)
        return instance

    def state_dict(
        self, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Parameters, and under ``"_metadata"`` the constructor's arguments, as text in numbers."""
        state: dict[str, Any] = nn.Module.state_dict(
            self, destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        if not prefix:
            state["_metadata"] = torch.tensor(list(json.dumps(self._init_kwargs).encode()))
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` made. The dictionary is not changed."""
        parameters = {key: value for key, value in state_dict.items() if key != "_metadata"}
        if "_metadata" in state_dict:
            metadata = metadata_of(state_dict)
            self._check_origin(metadata)
            mine, theirs = (
                {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
                for options in (_options(self._init_kwargs), _options(metadata))
            )
            other = {key: value for key, value in theirs.items() if key not in mine or mine[key] != value}
            if other:
                raise InputError(
                    f"these parameters belong to a {self._name} with {other}, this one has "
                    f"{ {key: mine.get(key) for key in other} }: build it with those options, or let "
                    f"{type(self).__name__}.from_checkpoint do it. To load them all the same, take "
                    "'_metadata' out of the state dict"
                )
        return nn.Module.load_state_dict(self, parameters, strict=strict, assign=assign)

    def load_checkpoint(self, save_folder: str | Path, save_name: str, map_location: Any = None) -> None:
        """Load the parameters that `save_checkpoint` wrote."""
        self.load_state_dict(_read(save_folder, f"{save_name}_state_dict.pt", map_location))

    @classmethod
    def from_checkpoint(cls, save_folder: str | Path, save_name: str, map_location: Any = None) -> Self:
        """Build the model that `save_checkpoint` wrote, with its options and parameters."""
        metadata = _read(save_folder, f"{save_name}_metadata.pkl", map_location)
        cls._check_origin(metadata)
        model = cls(**_options(metadata))
        model.load_checkpoint(save_folder, save_name, map_location=map_location)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, which can be shared; see `mano_op.pretrained`.

        Examples
        --------
        >>> import tempfile
        >>> from mano_op import MANO
        >>> model = MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     again = MANO.from_pretrained(folder)
        >>> bool((again.lifting.weight == model.lifting.weight).all())
        True
        """
        save_model(folder, self, self._name, _options(self._init_kwargs))

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, revision: str | None = None) -> Self:
        """Load the model of a folder, or of a repository of the Hugging Face Hub, in evaluation mode.

        The errors are those of `mano_op.pretrained.load_model`.
        """
        model, arch, _ = load_model(folder, revision=revision)
        if not isinstance(model, cls):
            raise InputError(f"{folder} holds a {arch}, expected a {cls.__name__}: load it with that class")
        return model

    @classmethod
    def _check_origin(cls, metadata: Mapping[str, Any]) -> None:
        saved = metadata.get("_name"), metadata.get("_version")
        if saved != (cls._name, cls._version):
            raise InputError(
                f"this is a checkpoint of {saved[0]} version {saved[1]}, expected {cls._name} version "
                f"{cls._version}: load it with its own class, by the release of mano_op that wrote it"
            )

    in_channels: int
    n_dim: int

    def _check_field(self, x: Tensor, axes: str, dtype: torch.dtype) -> None:
        """Refuse an input of other channels, or of another type than the parameters."""
        check_field(x, self.n_dim, axes, self._name, in_channels=self.in_channels)
        if not x.is_floating_point():
            raise InputError(f"{self._name} got {x.dtype} input, expected a floating type: use x.float()")
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(
                f"{self._name} got {x.dtype} input and has {dtype} parameters: use x.to({dtype}), or "
                f"model.to({x.dtype})"
            )


def metadata_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments that `DataModel.state_dict` wrote; none for another model's."""
    text = state_dict.get("_metadata")
    if not isinstance(text, Tensor):
        return dict(text or {})
    try:
        metadata = json.loads(bytes(text.round().int().tolist()))
    except ValueError as error:
        raise InputError(
            f"'_metadata' of the state dict cannot be read ({error}): take it out to load the parameters all "
            "the same, or copy the file again"
        ) from error
    return dict(metadata)


def _options(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments, which `DataModel.__new__` makes keywords."""
    return {key: value for key, value in metadata.items() if key not in ("args", "_name", "_version")}


def _read(folder: str | Path, name: str, map_location: Any) -> dict[str, Any]:
    """Read a file of tensors and plain values; it is data, and no code in it is run."""
    path = Path(folder) / name
    if not path.exists():
        present = sorted(p.name for p in Path(folder).glob("*_metadata.pkl"))
        holds = f"The folder holds {present}. " if present else ""
        raise InputError(
            f"there is no {path}. {holds}Give the folder and name that save_checkpoint was called with"
        )
    return read_tensors(path, map_location=map_location)


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint can hold a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return type(value) in (bool, int, float, str, type(None))


# A base class is not a model to ask for: neuraloperator registers every subclass as one.
del BaseModel._models["_data_model"]
