"""The model card of a classifier, for people; see `mano_op.card`, whose place in a run it takes."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mano_op.card import BEGIN, END, markdown_table, plain_text

_NOT_JUDGED = "Not judged on images that it was not trained on: `mano-op classify eval --card` does so."
_ELSEWHERE = ("source", "start", "machine", "images")
_SHOWN = 20  # of the classes


def classifier_card(
    arch: str,
    options: Mapping[str, Any],
    parameters: int,
    processor: Mapping[str, Any],
    classes: Sequence[str],
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> str:
    """The card of a run, in Markdown; the arguments are the parts of a `mano_op.vision.runs.ClassifierRun`.

    Where the images lie is left out: it is a path of the machine that trained.

    Examples
    --------
    >>> processor = {"mean": [0.5], "std": [0.25], "n_classes": 2, "smoothing": 0.0}
    >>> card = classifier_card("mano_classifier", {"n_layers": 2}, 1234, processor, ["cat", "dog"],
    ...                        {"image_size": [8, 8]}, [{"epoch": 1, "training_error": 0.1}])
    >>> print(card[:117])
    ---
    library_name: mano_op
    tags:
    - image-classification
    - mano_classifier
    ---
    # mano_classifier: images to 2 classes
    """
    machine = training.get("machine", {})
    on = [*machine.get("versions", {}).items(), ("processor", machine.get("processor"))]
    last = history[-1] if history else {}
    numbers = [
        [name.replace("_", " "), f"{last[name]:.4g}"] for name in last if name.endswith(("error", "accuracy"))
    ]
    channels = [
        [str(i), f"{mean:.4g}", f"{std:.4g}"]
        for i, (mean, std) in enumerate(zip(processor["mean"], processor["std"], strict=True))
    ]
    more = f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
    return "\n".join(
        [
            "---",
            "library_name: mano_op",
            "tags:",
            "- image-classification",
            f"- {arch.lower()}",
            "---",
            f"# {arch}: images to {len(classes)} classes",
            "",
            f"A model of neuraloperator's registry, `{arch}`, of {parameters:,} parameters, with the "
            "normalisation of its images. Files are data: JSON and safetensors.",
            "",
            "```python",
            "from mano_op.vision.runs import load_classifier",
            "",
            'run = load_classifier("THIS FOLDER")  # or "owner/name" on the Hub',
            f"# x: images (batch, {len(channels)}, height, width) in [0, 1]",
            "logits, _ = run.processor.wrap(run.model)(x=x)",
            "names = [run.classes[i] for i in logits.argmax(1)]",
            "```",
            "",
            "## Classes",
            "",
            ", ".join(map(_plain, classes[:_SHOWN])) + more,
            "",
            "## Channels",
            "",
            markdown_table(["channel", "mean", "standard deviation"], channels),
            "",
            "## Options",
            "",
            markdown_table(["option", "value"], [[name, plain_text(one)] for name, one in options.items()]),
            "",
            "## Training",
            "",
            markdown_table(
                ["", ""],
                [
                    [name, plain_text(one)]
                    for name, one in training.items()
                    if name not in _ELSEWHERE and one not in (None, [], {}, "")
                ],
            ),
            "",
            f"With {', '.join(f'{name} {value}' for name, value in on if value)}." if machine else "",
            "",
            "## Errors",
            "",
            markdown_table(["at the end of training, cross-entropy in nats", ""], numbers),
            "",
            BEGIN,
            _NOT_JUDGED,
            END,
            "",
            "On images of another size an answer should be compared with that on the same images at the size "
            "of the training, before it is trusted; `mano-op classify eval --sizes` does.",
            "",
        ]
    )


def _plain(name: str) -> str:
    """A name as Markdown that shows it as it is, on one line: it may be that of any folder."""
    marked = re.sub(r"([\\`*~#\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(name.split()))
    return html.escape(marked, quote=False)
