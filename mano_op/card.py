"""The model card: what a model is for, on what and how it was trained, and how good it is, for people.

It is the ``README.md`` of a folder on the Hugging Face Hub, which reads what stands between the two lines of
dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mano_op.labels import variable_of

BEGIN, END = "<!-- judged: begin -->", "<!-- judged: end -->"
_NOT_JUDGED = (
    "Not judged on samples that it was not trained on: `mano-op transfer` does so, `--cards` writes it here."
)
# What a person asks first; the rest of what is known of the training follows.
_FIRST = (
    "title",
    "resolution",
    "grid",
    "samples",
    "epochs",
    "batch_size",
    "loss",
    "optimizer",
    "learning_rate",
)
_ELSEWHERE = ("store", "machine", "inputs", "outputs", "units")


def model_card(
    arch: str,
    options: Mapping[str, Any],
    parameters: int,
    processor: Mapping[str, Mapping[str, Mapping[str, Any]]],
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> str:
    """The card of a run, in Markdown; the arguments are the parts of a `mano_op.runs.Run`.

    Where the store lies is left out: it is a path of the machine that trained.

    Examples
    --------
    >>> unit = {"mean": 0.0, "std": 1.0}
    >>> card = model_card("mano", {"n_layers": 2}, 1234, {"inputs": {"a": unit}, "outputs": {"u": unit}},
    ...                   {"title": "Darcy flow", "resolution": "r16"}, [{"epoch": 1, "training_error": 0.1}])
    >>> print(card[:81])
    ---
    library_name: mano_op
    tags:
    - neural-operator
    - pde
    - mano
    ---
    # mano: a to u
    """
    inputs, outputs = processor["inputs"], processor["outputs"]
    units = training.get("units", {})
    channels = [
        [label, role, units.get(variable_of(label), ""), *_statistics(one)]
        for role, labels in (("input", inputs), ("output", outputs))
        for label, one in labels.items()
    ]
    told = {name: training[name] for name in _FIRST if name in training}
    told |= {name: value for name, value in training.items() if name not in (*_FIRST, *_ELSEWHERE)}
    machine = training.get("machine", {})
    on = [*machine.get("versions", {}).items(), ("processor", machine.get("processor"))]
    last = history[-1] if history else {}
    errors = [[name.replace("_", " "), f"{last[name]:.4g}"] for name in last if name.endswith("error")]
    names = " and ".join(inputs), " and ".join(outputs)
    return "\n".join(
        [
            *(
                "---",
                "library_name: mano_op",
                "tags:",
                "- neural-operator",
                "- pde",
                f"- {arch.lower()}",
                "---",
            ),
            f"# {arch}: {names[0]} to {names[1]}",
            "",
            f"A model of neuraloperator's registry, `{arch}`, of {parameters:,} parameters, with the "
            "normalisation of its fields. Files are data: JSON and safetensors.",
            "",
            "```python",
            "from mano_op import load_run",
            "",
            'run = load_run("THIS FOLDER")  # or "owner/name" on the Hub',
            "predict = run.processor.wrap(run.model)",
            f"# a: fields (batch, {len(inputs)}, *grid) in their units, and so is u",
            "u, _ = predict(x=a)",
            "```",
            "",
            "## Channels",
            "",
            markdown_table(["channel", "role", "units", "mean", "standard deviation", "after"], channels),
            "",
            "## Options",
            "",
            markdown_table(
                ["option", "value"], [[name, plain_text(value)] for name, value in options.items()]
            ),
            "",
            "## Training",
            "",
            markdown_table(
                ["", ""],
                [[name, plain_text(value)] for name, value in told.items() if value not in (None, [], "")],
            ),
            "",
            f"With {', '.join(f'{name} {value}' for name, value in on if value)}." if machine else "",
            "",
            "## Errors",
            "",
            markdown_table(["at the end of training, relative", ""], errors),
            "",
            BEGIN,
            _NOT_JUDGED,
            END,
            "",
            "On grids other than that of the training a prediction should be compared with that at the "
            "training's resolution, interpolated, before it is trusted; `mano-op transfer` does.",
            "",
        ]
    )


def with_judgement(card: str, judged: str) -> str:
    r"""The card with what a model was judged to be, in place of what it said of that; the rest stays.

    Examples
    --------
    >>> with_judgement("My model.", "good")
    'My model.\n\n<!-- judged: begin -->\ngood\n<!-- judged: end -->\n'
    """
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = card.rstrip("\n") + "\n\n", "\n"
    return f"{before}{BEGIN}\n{judged.strip()}\n{END}{after}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Examples
    --------
    >>> print(markdown_table(["size", "error"], [["16", "0.1"]]))
    | size | error |
    | --- | --- |
    | 16 | 0.1 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _statistics(channel: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of a channel: mean, standard deviation, and after what."""
    return f"{channel['mean']:.4g}", f"{channel['std']:.4g}", channel.get("transform", "")


def plain_text(value: Any) -> str:
    """A value as the cell of a table has it.

    Examples
    --------
    >>> plain_text({"train": 8, "test": [2, 3]})
    'train: 8, test: 2, 3'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {plain_text(one)}" for name, one in value.items())
    return (
        ", ".join(map(plain_text, value))
        if isinstance(value, list | tuple)
        else str(value).replace("\n", " ")
    )
