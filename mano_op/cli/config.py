"""Options from a file: ``--config``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from mano_op.errors import InputError

# What a run calls otherwise.
_NAMES = {"options": "option", "channels": "in_channels"}


def configure(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give a command the options of the file that ``--config`` names: those that no word gives."""
    known = {name: argument for argument in arguments for name in argument.names}
    if "--config" not in known or not known["--config"].tokens:
        return
    path = Path(known["--config"].tokens[0].value)
    content, of_run = _read(path, commands[-1] if commands else "")
    content = {name: value for name, value in content.items() if value is not None}
    content |= content.pop("augmentation", {})  # options that stand together in a run
    if isinstance(mixture := content.get("resolution"), Mapping):  # whose parts have flags of their own
        content["resolution"] = mixture.get("resolutions", [])
        content |= {name: mixture[name] for name in ("ratios", "batch_size") if mixture.get(name)}
    words = {}
    for name, value in content.items():
        name = _NAMES.get(name, name).replace("_", "-")
        words[name] = (
            words_of(value, known[f"--{name}"].parameter.n_tokens == 1) if f"--{name}" in known else value
        )
    Dict(data=words, source=str(path), allow_unknown=of_run, use_commands_as_keys=False)(
        app, commands, arguments
    )


def _read(path: Path, command: str) -> tuple[dict[str, Any], bool]:
    """Return the entries of a file, and whether it is of a run, which has more entries than options."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML ({' '.join(str(error).split())}): correct the file") from error
    mapping = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not mapping or not isinstance(content.get("augmentation", {}), dict):
        raise InputError(
            f"{path} holds {content!r}, expected names of options and their values, epochs: 30, and of "
            "augmentation a mapping of options"
        )
    if not str(content.get("format", "")).startswith("mano_op"):
        return content, False
    model = path.with_name("config.json")
    described = json.loads(model.read_text()) if model.exists() else {}
    training = content.get("training", {})
    task = training.get("task")
    if command in ("fields", "images") and task != command:
        raise InputError(f"{path} is of a run of {task}: give the run.json of a run of {command}")
    drawn = training.get("images", {}).get("split", {})  # of images: the parts that were drawn for splits
    parts = {"test_part": drawn.get("test"), "validation_part": drawn.get("validation")}
    parts["split_seed"] = drawn.get("seed")
    return {**training, **parts, "arch": described.get("arch"), "options": described.get("options")}, True


def words_of(value: Any, single: bool) -> Any:
    """Return a value as words of the command line: 16x24 for [16, 24], NAME=VALUE for a mapping's entry."""
    if isinstance(value, Mapping):
        return [f"{name}={_word(item)}" for name, item in value.items()]
    if isinstance(value, list | tuple):
        return "x".join(map(str, value)) if single else [words_of(item, True) for item in value]
    return value


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
