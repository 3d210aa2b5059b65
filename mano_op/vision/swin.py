r"""Swin Transformer V2's weights as the start of a MANO.

Swin-V2 is published in several layouts, which name the same numbers differently:

=============  ======================================================  =======================================
layout         of                                                      the first block's queries, keys, values
=============  ======================================================  =======================================
timm           ``swinv2_tiny_window8_256`` and its like; also those    ``layers.0.blocks.0.attn.qkv.weight``
               of the authors, whose merging stands one stage earlier
torchvision    ``swin_v2_t``, ``_s``, ``_b``                           ``features.1.0.attn.qkv.weight``
transformers   ``Swinv2Model``, ``Swinv2ForImageClassification``       ``encoder.layers.0.blocks.0.attention.
                                                                       self.query.weight``, ``.key``, ...
=============  ======================================================  =======================================

With a single level `mano_op.vision.MANOClassifier` computes what Swin does. Coarser levels share Swin's
attention, start with restrictions that average and prolongations that copy, and what comes of them is added
to the finest level with factors that start at 0: so the network begins as Swin, whatever its levels, and
learns what to take from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mano_op.errors import InputError, check_whole, listed
from mano_op.files import read_tensors
from mano_op.layers.multipole import MultipoleAttention
from mano_op.vision.classifier import MANOClassifier
from mano_op.vision.resize import size_of
from mano_op.weights import read_weights

# Names that follow from others, are always 0, or hold options of neuraloperator's models.
_IMPLIED = ("_metadata", "relative_coords_table", "relative_position_index", "attn_mask", "k_bias")


def from_swin_v2(
    weights: Mapping[str, Tensor] | str | Path,
    *,
    window: int | None = None,
    pretrained_window: int | Sequence[int] | None = None,
    image_size: int | Sequence[int] = 256,
    n_levels: int | Sequence[int] | None = None,
    n_classes: int | None = None,
    drop_path: float = 0.0,
) -> MANOClassifier:
    r"""A `MANOClassifier` that begins as a Swin Transformer V2.

    Parameters
    ----------
    weights : mapping of str to Tensor, or path
        The state dict of a Swin-V2 in one of the layouts of the module, or a file that holds one:
        ``.safetensors``, or what ``torch.save`` wrote, of which nothing but tensors is read.
    window : int, optional
        Points along each side of its windows. Torchvision's weights say it; for others give the number after
        "window" in the name of the model.
    pretrained_window : int or sequence of int, optional
        Windows of the training that the position bias counts in, one for each stage, where the model's were
        enlarged after it: ``(12, 12, 12, 6)`` for "window12to16" and "window12to24"; 0 where they were not. A
        single number is for stages whose windows are equal. Weights with tables of offsets, such as
        torchvision's, say it; of others it is asked.
    image_size : int or sequence of int
        Pixels along the sides of the images that levels are laid out for.
    n_levels : int or sequence of int, optional
        Levels of the attention, in each stage; see `MANOClassifier`. 1 is Swin.
    n_classes : int, optional
        Of a new head, which starts at random. If not given, the head is Swin's.
    drop_path : float
        Stochastic depth of the last block; see `MANOClassifier`.

    Returns
    -------
    MANOClassifier
        In single precision and training mode, as one that is built.

    Raises
    ------
    InputError
        If the weights are not those of a Swin-V2, or say nothing of what has to be given.

    Notes
    -----
    The two agree where the points of each stage are a multiple of the window; see `MANOClassifier`. Images
    have to be normalised as for Swin: ``normalise="imagenet"`` with published weights.

    Freezing the backbone trains the head alone: ``train_classifier(..., freeze="backbone")``.

    Examples
    --------
    >>> model = from_swin_v2("swinv2.safetensors", window=8, pretrained_window=0)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: swinv2.safetensors does not exist: give the file of a Swin-V2's weights, or its
    state dict
    """
    if not isinstance(weights, Mapping | str | Path):
        raise InputError(
            f"weights={type(weights).__name__}, expected a state dict or a file: give model.state_dict()"
        )
    found = _read(weights) if isinstance(weights, str | Path) else dict(weights)
    named = _common(found)
    options = _options(named, found, window, pretrained_window, image_size)
    head = named.get("head.weight")
    if head is not None and head.ndim != 2:
        raise InputError(f"the head's weight has the shape {tuple(head.shape)}, expected (classes, channels)")
    if n_classes is None and head is None:
        raise InputError("these weights have no head, and n_classes is None: give the number of classes")
    fresh = n_classes is not None and (head is None or n_classes != len(head))
    model = MANOClassifier(
        **options,
        n_classes=cast(int, n_classes) if fresh else len(cast(Tensor, head)),
        image_size=image_size,
        n_levels=n_levels,
        drop_path=drop_path,
    )
    state = {
        name: t for name, t in model.state_dict().items() if name != "_metadata" and not _is_new(name, fresh)
    }
    named = {name: t for name, t in named.items() if not (name.startswith("head.") and fresh)}
    wrong = [
        f"{name} is {_told(named, name)}, expected {_told(state, name)}"
        for name in sorted(state.keys() | named.keys())
        if _told(state, name) != _told(named, name)
    ]
    if wrong:
        raise InputError(
            f"these are not the weights of a Swin-V2 that MANO can start from: {'; '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}"
        )
    with torch.no_grad():
        for name, parameter in state.items():
            parameter.copy_(named[name])
        for module in model.modules():
            if isinstance(module, MultipoleAttention):
                module.scale[:1] = 0
    return model


def _read(path: str | Path) -> dict[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the file of a Swin-V2's weights, or its state dict")
    if path.suffix == ".safetensors":
        return read_weights(path)
    found = read_tensors(path)
    return dict(found["model"]) if isinstance(found.get("model"), Mapping) else found


def _common(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under the names that they have in a `MANOClassifier`."""
    weights = {name: t for name, t in weights.items() if not name.endswith(_IMPLIED)}
    for name, t in weights.items():
        if not isinstance(t, Tensor):
            raise InputError(
                f"the state dict has entries that are no tensors, {name} is of {type(t).__name__}: give the "
                "one of the model itself"
            )
        if not t.is_floating_point() or t.is_meta:
            raise InputError(
                f"{name} is of {t.dtype} on {t.device}, expected numbers of a floating type: give the "
                "weights as they were trained"
            )
    for mark, read in (
        ("patch_embed.proj.weight", _of_timm),
        ("features.0.0.weight", _of_torchvision),
        ("embeddings.patch_embeddings.projection.weight", _of_transformers),
    ):
        at = [name for name in weights if name == mark or name.endswith(f".{mark}")]
        if at:
            return read(_without(weights, at[0].removesuffix(mark)))
    raise InputError(
        f"a state dict with {', '.join(sorted(weights)[:3])}, ... is in no known layout of Swin-V2: give one "
        "of timm, torchvision or transformers"
    )


def _without(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The names without what modules that hold the backbone put before them.

    In transformers' layout the head has but what modules that hold the whole model do.
    """
    whole = prefix.removesuffix("swinv2.")
    return {name.removeprefix(prefix).removeprefix(whole): t for name, t in weights.items()}


def _renamed(weights: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The weights by other names: the first rule that fits a whole name says which. Others stay."""
    named = {}
    for name, t in weights.items():
        for pattern, new in rules:
            if re.fullmatch(pattern, name):
                name = re.sub(pattern, new, name)
                break
        named[name] = t.flatten() if name.endswith("logit_scale") else t
    return named


_HERE, _ATTENTION = r"stages.\1.\2.", r"stages.\1.\2.attention.attention.0."


def _of_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    block = r"layers\.(\d+)\.blocks\.(\d+)\."
    named = _renamed(
        weights,
        [
            (r"patch_embed\.proj\.(\w+)", r"patches.project.\1"),
            (r"patch_embed\.norm\.(\w+)", r"patches.norm.\1"),
            (r"layers\.(\d+)\.downsample\.(\w+\.\w+)", r"merging.\1.\2"),
            (block + r"attn\.proj\.(\w+)", _ATTENTION + r"out.\3"),
            (block + r"attn\.cpb_mlp\.0\.(\w+)", _ATTENTION + r"bias.fc1.\3"),
            (block + r"attn\.cpb_mlp\.2\.(\w+)", _ATTENTION + r"bias.fc2.\3"),
            (block + r"attn\.(.+)", _ATTENTION + r"\3"),
            (block + r"(.+)", _HERE + r"\3"),
            (r"head\.fc\.(\w+)", r"head.\1"),
        ],
    )
    if any(name.startswith("merging.0.") for name in named):
        return named
    # timm has a stage's merging at its beginning, as part of the stage that it leads to.
    return _renamed_merging(named)


def _renamed_merging(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def earlier(found: re.Match[str]) -> str:
        return f"merging.{int(found[1]) - 1}."

    return {re.sub(r"^merging\.(\d+)\.", earlier, name): t for name, t in named.items()}


def _of_torchvision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    block = r"features\.(\d+)\.(\d+)\."
    named = _renamed(
        weights,
        [
            (r"features\.0\.0\.(\w+)", r"patches.project.\1"),
            (r"features\.0\.2\.(\w+)", r"patches.norm.\1"),
            (r"features\.(\d+)\.(reduction|norm)\.(\w+)", r"merging.\1.\2.\3"),
            (block + r"attn\.proj\.(\w+)", _ATTENTION + r"out.\3"),
            (block + r"attn\.cpb_mlp\.0\.(\w+)", _ATTENTION + r"bias.fc1.\3"),
            (block + r"attn\.cpb_mlp\.2\.(\w+)", _ATTENTION + r"bias.fc2.\3"),
            (block + r"attn\.(.+)", _ATTENTION + r"\3"),
            (block + r"mlp\.0\.(\w+)", _HERE + r"mlp.fc1.\3"),
            (block + r"mlp\.3\.(\w+)", _HERE + r"mlp.fc2.\3"),
            (block + r"(.+)", _HERE + r"\3"),
        ],
    )

    # Its features are the patches, a stage, a merging, a stage, ...
    def halved(found: re.Match[str]) -> str:
        return f"{found[1]}.{(int(found[2]) - 1) // 2}."

    named = {re.sub(r"^(stages|merging)\.(\d+)\.", halved, name): t for name, t in named.items()}
    for name in [name for name in named if name.endswith("qkv.bias")]:
        # The bias of keys is there, and set to 0 whenever it is used.
        q, _, v = named.pop(name).chunk(3)
        named[name.replace("qkv.bias", "q_bias")], named[name.replace("qkv.bias", "v_bias")] = q, v
    return named


def _of_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    block = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
    own = block + r"attention\.self\."
    named = _renamed(
        weights,
        [
            (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patches.project.\1"),
            (r"embeddings\.norm\.(\w+)", r"patches.norm.\1"),
            (r"encoder\.layers\.(\d+)\.downsample\.(\w+\.\w+)", r"merging.\1.\2"),
            (own + r"query\.bias", _ATTENTION + "q_bias"),
            (own + r"value\.bias", _ATTENTION + "v_bias"),
            (own + r"continuous_position_bias_mlp\.0\.(\w+)", _ATTENTION + r"bias.fc1.\3"),
            (own + r"continuous_position_bias_mlp\.2\.(\w+)", _ATTENTION + r"bias.fc2.\3"),
            (own + r"(.+)", _ATTENTION + r"\3"),
            (block + r"attention\.output\.dense\.(\w+)", _ATTENTION + r"out.\3"),
            (block + r"layernorm_before\.(\w+)", _HERE + r"norm1.\3"),
            (block + r"layernorm_after\.(\w+)", _HERE + r"norm2.\3"),
            (block + r"intermediate\.dense\.(\w+)", _HERE + r"mlp.fc1.\3"),
            (block + r"output\.dense\.(\w+)", _HERE + r"mlp.fc2.\3"),
            (r"layernorm\.(\w+)", r"norm.\1"),
            (r"classifier\.(\w+)", r"head.\1"),
        ],
    )
    for name in [name for name in named if name.endswith("query.weight")]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if all(part in named for part in parts):
            named[name.replace("query", "qkv")] = torch.cat([named.pop(part) for part in parts])
    return named


def _options(
    named: Mapping[str, Tensor],
    weights: Mapping[str, Any],
    window: int | None,
    pretrained_window: int | Sequence[int] | None,
    image_size: int | Sequence[int],
) -> dict[str, Any]:
    """The options that weights say."""

    def count(of: Callable[[int], str]) -> int:
        n = 0
        while any(name.startswith(of(n)) for name in named):
            n += 1
        return n

    def shape(name: str) -> tuple[int, ...]:
        if name not in named:
            raise InputError(f"these are not the weights of a Swin-V2 that MANO can start from: no {name}")
        return tuple(named[name].shape)

    n_stages = count(lambda i: f"stages.{i}.")
    depths = [count(lambda j, i=i: f"stages.{i}.{j}.") for i in range(n_stages)]  # type: ignore[misc]
    first = "stages.0.0."
    project, hidden = shape("patches.project.weight"), shape(first + "mlp.fc1.weight")
    if len(project) != 4 or project[2] != project[3]:
        raise InputError(f"the patches' weight has the shape {project}, expected (channels, in, p, p)")
    if len(hidden) != 2 or 0 in hidden:
        raise InputError(f"an MLP's first weight has the shape {hidden}, expected (hidden, channels)")
    side, counted = _windows(weights, window, pretrained_window)
    _check_stages(pretrained_window, side, [project[2] * 2**i for i in range(n_stages)], image_size)
    return {
        "in_channels": project[1],
        "patch_size": project[2],
        "embed_dim": project[0],
        "depths": depths,
        "n_heads": [shape(f"stages.{i}.0.attention.attention.0.logit_scale")[0] for i in range(n_stages)],
        "window": side,
        "bias_window": counted,
        "mlp_ratio": hidden[0] / hidden[1],
    }


def _windows(
    weights: Mapping[str, Any], window: int | None, pretrained: int | Sequence[int] | None
) -> tuple[int, int | list[int] | None]:
    """The window, and those that position biases count in: as weights say, if they do, or as is given."""
    tables = {name: t for name, t in weights.items() if name.endswith("relative_coords_table")}
    options = weights.get("_metadata")
    if tables:
        side, counted = _windows_of_tables(tables)
    elif isinstance(options, Mapping) and isinstance(options.get("window"), int):
        side, counted = options["window"], options.get("bias_window")  # a model of neuraloperator's registry
    else:
        if window is None:
            raise InputError(
                "window=None, and these weights do not say how large their windows are: give the number "
                "after 'window' in the name of the model, window=8"
            )
        if pretrained is None:
            raise InputError(
                "pretrained_window=None, and these weights do not say whether their windows were enlarged "
                "after training: give pretrained_window=0 if they were not, as in 'window8', or those of the "
                "training for each stage, pretrained_window=(12, 12, 12, 6) for 'window12to16'"
            )
        return window, list(pretrained) if isinstance(pretrained, Sequence) else pretrained
    if window is not None and window != side:
        raise InputError(f"window={window}, but these weights are of windows of {side}: leave it out")
    given = list(pretrained) if isinstance(pretrained, Sequence) else [pretrained or 0]
    if pretrained is not None and (given if any(given) else None) != counted:
        raise InputError(
            f"pretrained_window={pretrained}, but these weights count offsets in windows of "
            f"{counted or side}: leave it out"
        )
    return side, counted


def _check_stages(
    pretrained: int | Sequence[int] | None,
    window: int,
    strides: Sequence[int],
    image_size: int | Sequence[int],
) -> None:
    """Refuse windows of the training that are not one for each stage, or a number where stages differ."""
    check_whole(window=window)
    for size in pretrained if isinstance(pretrained, Sequence) else [pretrained or 0]:
        check_whole(at_least=0, pretrained_window=size)
    if isinstance(pretrained, Sequence):
        if len(pretrained) != len(strides):
            raise InputError(
                f"pretrained_window={pretrained!r}, expected one for each of {len(strides)} stages, or 0"
            )
    elif pretrained:
        sides = [min(window, *(-(-n // stride) for n in size_of(image_size))) for stride in strides]
        if len(set(sides)) > 1:
            raise InputError(
                f"pretrained_window={pretrained!r} for stages with windows of {listed(sides)} points: images "
                "of the training cut its windows too, so give one for each stage, as (12, 12, 12, 6) is for "
                "'window12to16'"
            )


def _windows_of_tables(tables: Mapping[str, Tensor]) -> tuple[int, list[int] | None]:
    r"""The window of tables of offsets, ``(1, 2 w - 1, 2 w - 1, 2)``, and those that each stage counts in.

    The outermost offset is :math:`\log_8 (1 + 8 (w - 1) / (p - 1))`, with p the window that is counted in.
    """
    sides, counted = [], {}
    for name, table in tables.items():
        if table.ndim != 4 or table.numel() == 0:
            raise InputError(
                f"the table of offsets has the shape {tuple(table.shape)}, expected (1, 2 w - 1, 2 w - 1, "
                "2): give the weights as they were saved"
            )
        side = (table.shape[1] + 1) // 2
        outermost = 8.0 ** float(table.max()) - 1
        size = 1 + 8 * (side - 1) / outermost if outermost > 0 else float(side)
        if abs(size - round(size)) > 1e-3:
            raise InputError(
                f"{name}: offsets reach {float(table.max()):.4f}, which no window of a Swin-V2 gives: give "
                "the weights as they were saved"
            )
        sides.append(side)
        stage = int(re.findall(r"(?:layers|features)\.(\d+)\.", name)[0])
        counted[stage] = 0 if round(size) == side else round(size)
    largest = max(sides)
    sizes = [counted[stage] for stage in sorted(counted)]
    return largest, sizes if any(sizes) else None


def _is_new(name: str, fresh: bool) -> bool:
    """Whether a parameter of a MANO is none of Swin's; `fresh` says that the head is not."""
    new = (".attention.scale", ".down.", ".up.")
    return any(part in name for part in new) or (fresh and name.startswith("head."))


def _told(named: Mapping[str, Tensor], name: str) -> str:
    return "x".join(map(str, named[name].shape)) if name in named else "missing"
