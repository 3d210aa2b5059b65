"""A saved classifier whose parameters another one begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mano_op.description import entry, read_description
from mano_op.errors import InputError
from mano_op.pretrained import CONFIG, fetched, load_model
from mano_op.pretrained import FORMAT as MODEL_FORMAT
from mano_op.pretrained import FORMAT_VERSION as MODEL_FORMAT_VERSION
from mano_op.vision.processor import ImageProcessor
from mano_op.vision.runs import FORMAT, FORMAT_VERSION, processor_of
from mano_op.weights import parameters_of


@dataclass(frozen=True)
class SavedModel:
    """A model to begin with.

    Attributes
    ----------
    path : Path
    model : nn.Module
    options : dict
        Its constructor's arguments.
    digest : str
        The SHA-256 of its parameters.
    processor : ImageProcessor, optional
        That was before it, if it is of a run.
    """

    path: Path
    model: nn.Module
    options: dict[str, Any]
    digest: str
    processor: ImageProcessor | None = None

    def give(self, model: nn.Module) -> None:
        """Give a model these parameters, but for those of a head of another number of classes.

        Raises
        ------
        InputError
            If anything but the head is of another shape.
        """
        theirs, mine = parameters_of(self.model), parameters_of(model)
        shapes = [{name: tuple(one.shape) for name, one in both.items()} for both in (mine, theirs)]
        different = [name for name in {**mine, **theirs} if shapes[0].get(name) != shapes[1].get(name)]
        other = [name for name in different if not name.startswith("head.")]
        if other:
            raise InputError(
                f"{self.path} has {other[0]} of shape {shapes[1].get(other[0])}, the model to train of "
                f"{shapes[0].get(other[0])}: leave out the options that differ from {self.options}"
            )
        taken = {name: one.to(mine[name].dtype) for name, one in theirs.items() if name not in different}
        nn.Module.load_state_dict(model, {**mine, **taken})


def saved_model(start: str | Path, arch: str) -> SavedModel:
    """Read a model of a name from a folder, as ``save_pretrained`` or a run of a classifier writes it.

    Raises
    ------
    InputError
        If there is none, of another name, or it is damaged.
    """
    folder = fetched(start)
    model, there, options = load_model(folder)
    if there.lower() != arch.lower():
        raise InputError(f"start={start} holds a {there}, arch={arch!r}: give arch={there!r}")
    config = read_description(folder / CONFIG, MODEL_FORMAT, (MODEL_FORMAT_VERSION,))
    digest = str(entry(folder / CONFIG, config, "weights", dict).get("sha256"))
    path = folder / "run.json"
    if not path.exists():
        return SavedModel(folder, model, options, digest)
    described = read_description(path, FORMAT, (FORMAT_VERSION,))
    return SavedModel(folder, model, options, digest, processor_of(path, described))
