"""The model card: what a model is for, on what and how it was trained, and how good it is, for people.

It is the ``README.md`` of a run's folder, and so of a repository on the Hugging Face Hub. The text is in
``templates/card.md.j2``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mano_op.labels import variable_of

if TYPE_CHECKING:
    from mano_op.runs import Run

BEGIN, END = "<!-- judged: begin -->", "<!-- judged: end -->"
# The other entries of the training follow.
_FIRST = (
    *("title", "resolution", "grid", "samples"),
    *("epochs", "batch_size", "loss", "optimizer", "learning_rate"),
)
# Paths of the machine that trained, and what has a section of its own.
_ELSEWHERE = (
    *("task", "store", "source", "start", "images", "machine", "classes", "channels"),
    *("inputs", "outputs", "units"),
)
_IMAGE_DATA = ("samples", "validate", "validation")  # which `_image_data` puts into words


def model_card(run: Run) -> str:
    """Return the card of a run, in Markdown.

    Paths of the machine that trained are left out.

    Examples
    --------
    >>> import torch
    >>> from mano_op.data.processor import FieldProcessor
    >>> from mano_op.runs import Run
    >>> unit = {"mean": 0.0, "std": 1.0}
    >>> processor = FieldProcessor({"a": unit}, {"u": unit})
    >>> run = Run(torch.nn.Linear(2, 1), processor, "mano", {"n_layers": 2}, {"title": "Darcy flow"}, [])
    >>> model_card(run).splitlines()[7]
    '# mano: a to u'
    """
    training, images = run.training, run.task == "images"
    machine = training.get("machine", {})
    entries = {name: training[name] for name in (*_FIRST, *training) if name in training}
    if images and "images" in training:
        entries = _image_data(training) | {n: entries[n] for n in entries if n not in _IMAGE_DATA}
    versions = {**machine.get("versions", {}), "on": machine.get("processor")}
    environment = Environment(
        loader=PackageLoader("mano_op"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"cell": _cell, "markdown": _markdown}
    return environment.get_template("card.md.j2").render(
        run=run,
        tags=[*(["image-classification"] if images else ["neural-operator", "pde"]), run.arch.lower()],
        channels=_channels(run),
        training=list(_rows({name: entries[name] for name in entries if name not in _ELSEWHERE})),
        versions=[f"{name} {version}" for name, version in versions.items() if version],
        errors=[(name.replace("_", " "), value) for name, value in run.errors.items()],
        begin=BEGIN,
        end=END,
    )


def _rows(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return the rows of a table; an entry of several options is a row for each, "best.epoch"."""
    for name, value in entries.items():
        nested = isinstance(value, Mapping) and name != "samples"
        if nested:
            yield from _rows(value, f"{prefix}{name}.")
        elif value or name == "seed":
            yield f"{prefix}{name}", value


def _image_data(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source of images, and which of its images a model was trained and validated on."""
    origin, validate = training["images"], training.get("validate")
    rows = {
        "data": f"{PurePath(training['source']).name} ({origin['kind']}, digest {origin['digest']:.8})",
        "split off": origin["split"],
        "trained on": f"{training['samples']} images of the split train",
    }
    if validate is not None:
        part = "the split" if isinstance(validate, str) else "a part of the split train,"
        rows["validated on"] = f"{training['validation']['samples']} images: {part} {validate}"
    return rows


def _channels(run: Run) -> list[list[Any]]:
    processor, units = run.processor.to_dict(), run.training.get("units", {})
    if run.task == "images":
        rows = zip(processor["mean"], processor["std"], strict=True)
        return [[str(i), mean, std] for i, (mean, std) in enumerate(rows)]
    return [
        [label, role, units.get(variable_of(label), ""), c["mean"], c["std"], c.get("transform", "")]
        for role in ("input", "output")
        for label, c in processor[f"{role}s"].items()
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    r"""Return the lines of a Markdown table with aligned columns; the first row is the header.

    Examples
    --------
    >>> print(*markdown_table([["model", "error"], ["mano", "1.5"]]), sep="\n")
    | model | error |
    |-------|-------|
    | mano  | 1.5   |
    """
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def with_evaluation(card: str, evaluation: str) -> str:
    r"""Return a card with the results of an evaluation in place of those that it had; the rest stays."""
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = card.rstrip("\n") + "\n\n", "\n"
    return f"{before}{BEGIN}\n{evaluation.strip()}\n{END}{after}"


def _cell(value: Any) -> str:
    """Return a value as the cell of a table shows it."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{name}: {_cell(each)}" for name, each in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        text = ("; " if any(isinstance(each, str) for each in value) else ", ").join(map(_cell, value))
    else:
        text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def _markdown(name: str) -> str:
    """Return a name so that Markdown shows it unchanged, on one line."""
    marked = re.sub(r"([\\`*~#\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(name.split()))
    return html.escape(marked, quote=False)
