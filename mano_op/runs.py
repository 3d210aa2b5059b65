"""A run: a trained model with all it takes to use it, in a folder.

======================  =====================================================================================
file                    holds
======================  =====================================================================================
``config.json``,        the model alone, as `mano_op.pretrained` has it: ``MANO.from_pretrained`` reads it too
``model.safetensors``
``run.json``            the processor, what it was trained on and how, with the versions and the machine, and
                        the history of its errors
``README.md``           the model card: the same for people; see `mano_op.card`
======================  =====================================================================================

All of it is data. A run is read without unpickling anything, so one from somebody else can be opened; and
any model of neuraloperator's registry can be kept this way, `MANO` and ``FNO`` alike. Runs of version 1 have
``parameters.pt`` in place of the first two, and are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mano_op.card import model_card, with_judgement
from mano_op.cost import count_parameters
from mano_op.data.processor import FieldProcessor
from mano_op.description import describe, entry, read_description, write_description
from mano_op.errors import InputError
from mano_op.files import check_folder, make_folder, read_tensors, write_file
from mano_op.pretrained import fetched, load_model, save_model
from mano_op.registry import build_model

FORMAT, FORMAT_VERSION = "mano_op run", 2
CARD, OLD_PARAMETERS = "README.md", "parameters.pt"


@dataclass(frozen=True)
class Run:
    """A trained model and where it comes from.

    Attributes
    ----------
    model : nn.Module
    processor : FieldProcessor
        Between physical units and the model's.
    arch : str
        The model's name in neuraloperator's registry.
    options : dict
        The model's constructor arguments.
    training : dict
        What it was trained on and how; ``training["resolution"]`` is the key of the training level.
    history : list of dict
        One entry an epoch.
    """

    model: nn.Module
    processor: FieldProcessor
    arch: str
    options: dict[str, Any]
    training: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def times(self) -> dict[str, Any]:
        """Which times of the fields it is for, as `mano_op.data.dataset.FieldDataset` takes them."""
        names = ("time_steps", "at")
        return {name: self.training[name] for name in names if self.training.get(name) is not None}

    @property
    def n_parameters(self) -> int:
        """Real numbers to be learned; a complex parameter is two of them."""
        return count_parameters(self.model)


def save_run(folder: str | Path, run: Run) -> None:
    """Write a run into a folder, which is made if need be.

    ``run.json`` is written last and in one piece, so a folder that has it is whole.
    """
    folder = make_folder(folder)
    processor = run.processor.to_dict()
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "parameters": run.n_parameters,
        "processor": processor,
        "training": run.training,
        "history": run.history,
    }
    describe(description)  # before anything is written: raises if there is a number that is none
    # A run that is replaced is none from here on until the new one is whole.
    (folder / "run.json").unlink(missing_ok=True)
    save_model(folder, run.model, run.arch, run.options)
    (folder / OLD_PARAMETERS).unlink(missing_ok=True)
    card = model_card(run.arch, run.options, run.n_parameters, processor, run.training, run.history)
    write_file(folder / CARD, card)
    write_description(folder / "run.json", description)


def load_run(folder: str | Path, *, revision: str | None = None) -> Run:
    """Read what `save_run` wrote; the model and the processor are in evaluation mode.

    Parameters
    ----------
    folder : path or str
        A folder, or a repository of the Hugging Face Hub, ``"owner/name"``, which is fetched.
    revision : str, optional
        Of the repository: a branch, a tag or a commit.

    Raises
    ------
    InputError
        If the folder holds no run, one of another version, one that is damaged, or parameters that are not
        this model's.
    """
    folder = fetched(folder, revision)
    path = folder / "run.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no run.json, so it is no finished run: make one with `mano-op train`"
        )
    description = read_description(path, FORMAT, (1, FORMAT_VERSION))
    training, history = entry(path, description, "training", dict), entry(path, description, "history", list)
    try:
        processor = FieldProcessor.from_dict(entry(path, description, "processor", dict))
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{path}: 'processor' is no description of one ({type(error).__name__}: {error}): restore the "
            "file or train again"
        ) from error
    old = description["format_version"] == 1
    model, arch, options = _load_old(folder, path, description) if old else load_model(folder)
    return Run(model.eval(), processor.eval(), arch, options, training, history)


def _load_old(
    folder: Path, path: Path, description: Mapping[str, Any]
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The model of a run of version 1, which was described in ``run.json`` itself."""
    described = entry(path, description, "model", dict)
    arch, options = entry(path, described, "arch", str), entry(path, described, "options", dict)
    model = build_model(arch, options)
    parameters = read_tensors(folder / OLD_PARAMETERS)
    try:
        model.load_state_dict(parameters)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            f"the parameters in {folder} are not those of {arch} with {options}: {error}"
        ) from error
    return model, arch, options


def write_judgement(folder: str | Path, judged: str) -> None:
    """Write what a run was judged to be, a text in Markdown, into its model card; the rest of it stays.

    Raises
    ------
    InputError
        As `read_card`.
    """
    card = read_card(folder)
    write_file(Path(folder) / CARD, with_judgement(card, judged))


def read_card(folder: str | Path) -> str:
    """The model card of a run, empty if there is none.

    Raises
    ------
    InputError
        If the folder holds no run, or cannot be written to, or what is in the card's place is no text.
    """
    folder = check_folder(folder)
    if not (folder / "run.json").exists():
        raise InputError(
            f"{folder} holds no run.json, so it is no finished run: make one with `mano-op train`"
        )
    path = folder / CARD
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(
            f"{path} is no text in UTF-8 ({error}), so nothing can be written into it: move it elsewhere, or "
            "save it as UTF-8"
        ) from error
