r"""Swin Transformer V2's weights as the start of a MANO.

Swin-V2 is published in layouts that name the same weights differently: timm's (``swinv2_tiny_window8_256``,
...) and the authors', torchvision's (``swin_v2_t``, ...), and transformers' (``Swinv2Model``, ...).

With a single level `mano_op.vision.MANOClassifier` computes what Swin does. Coarser levels share Swin's
attention. Their restrictions start as averages, their prolongations as copies, and their outputs are added
with factors that start at 0: with any number of levels the network starts as Swin, and learns to use them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mano_op.errors import InputError
from mano_op.files import read_tensors
from mano_op.layers.multipole import MultipoleAttention
from mano_op.models.data_model import metadata_of
from mano_op.options import Count, Whole, checked
from mano_op.vision.classifier import MANOClassifier
from mano_op.vision.options import Size
from mano_op.vision.stages import per_stage
from mano_op.weights import check_entries, entries_of, parameters_of, read_weights

# Buffers, zeros, and options of neuraloperator's models.
_NO_WEIGHTS = ("_metadata", "relative_coords_table", "relative_position_index", "attn_mask", "k_bias")
_REMEDY = "give all weights of one Swin-V2, as it was trained"


@checked
def from_swin_v2(
    weights: Mapping[str, Any] | str | Path,
    *,
    window: Count | None = None,
    pretrained_window: Sequence[Whole] | Literal[0] | None = None,
    image_size: Size = 256,
    n_levels: int | Sequence[int] | None = None,
    n_classes: Count | None = None,
    drop_path: float = 0.0,
) -> MANOClassifier:
    """Build a `MANOClassifier` that starts as a Swin Transformer V2, in single precision and training mode.

    Parameters
    ----------
    weights : mapping of str to Tensor, or path
        State dict of a Swin-V2, or its file: ``.safetensors``, or one of ``torch.save``, from which only
        tensors are read.
    window : int, optional
        Points along each side of a window: the number after "window" in the name of the model. Not needed for
        weights with tables of offsets, such as torchvision's.
    pretrained_window : sequence of int or 0, optional
        Windows of each stage in training, in which the position bias counts offsets, if they were enlarged
        afterwards: ``(12, 12, 12, 6)`` for "window12to16"; otherwise 0. Not needed for tables of offsets.
    n_classes : int, optional
        Classes of a new, random head, which ``train_classifier(..., freeze="backbone")`` trains; by default
        the head is Swin's.
    image_size, n_levels, drop_path
        As in `MANOClassifier`.

    Raises
    ------
    InputError
        If the weights are not those of a Swin-V2, or an argument is missing or contradicts them.

    Notes
    -----
    Logits are Swin's where the points of each stage are a multiple of the window; see `MANOClassifier`.
    Images have to be normalised as for Swin: ``normalise="imagenet"`` with published weights.

    Examples
    --------
    >>> from mano_op.vision import SwinClassifier
    >>> small = {"image_size": 32, "embed_dim": 8, "depths": [1], "n_heads": [1], "window": 4}
    >>> from_swin_v2(SwinClassifier(3, 10, **small).state_dict(), image_size=32, n_levels=2).n_classes
    10
    """
    tensors: Mapping[str, Any] = _read(Path(weights)) if isinstance(weights, str | Path) else weights
    named = _renamed(tensors)
    if n_classes is None:
        n_classes = _shape(named, "head.weight", 2, "give n_classes, for a new head")[0]
    own_head = "head.weight" in named and named["head.weight"].shape[:1] == (n_classes,)
    if not own_head:
        named = {name: t for name, t in named.items() if not name.startswith("head.")}
    model = MANOClassifier(
        **_options(named, tensors, window, pretrained_window),
        n_classes=n_classes,
        image_size=image_size,
        n_levels=n_levels,
        drop_path=drop_path,
    )
    new = (".attention.scale", ".down.", ".up.", *([] if own_head else ["head."]))
    state = {name: t for name, t in parameters_of(model).items() if not any(part in name for part in new)}
    check_entries(entries_of(named), entries_of(state), "these weights are not those of a Swin-V2", _REMEDY)
    with torch.no_grad():
        for name, parameter in state.items():
            parameter.copy_(named[name])
        for module in model.modules():
            if isinstance(module, MultipoleAttention):
                module.scale[:1] = 0
    return model


def _read(path: Path) -> Mapping[str, Any]:
    tensors = read_weights(path) if path.suffix == ".safetensors" else read_tensors(path)
    model = tensors.get("model")
    return model if isinstance(model, Mapping) else tensors


# A name of each layout that no other layout has.
_MARKS = ("patch_embed.proj.weight", "features.0.0.weight", "embeddings.patch_embeddings.projection.weight")
_ATTENTION = "attention.attention.0"
# Parts of names in the layouts, and what `MANOClassifier` has in their place; replaced in this order.
_NAMES = (
    (r"^(patch_embed\.proj|features\.0\.0|embeddings\.patch_embeddings\.projection)\b", "patches.project"),
    (r"^(patch_embed\.norm|features\.0\.2|embeddings\.norm)\b", "patches.norm"),
    (r"^layernorm\b", "norm"),
    (r"^(head\.fc|classifier)\b", "head"),
    (r"^(?:encoder\.)?(?:layers|features)\.(\d+)\.(?:downsample\.)?(reduction|norm)\b", r"merging.\1.\2"),
    (r"^(?:encoder\.)?(?:layers|features)\.(\d+)\.(?:blocks\.)?(\d+)\b", r"stages.\1.\2"),
    (r"\battention\.output\.dense\b", "attn.proj"),
    (r"\battention\.self\b", "attn"),
    (r"\b(q)uery\.bias|\b(v)alue\.bias", r"\1\2_bias"),
    (r"\b(cpb_mlp|continuous_position_bias_mlp)\.0\b", "bias.fc1"),
    (r"\b(cpb_mlp|continuous_position_bias_mlp)\.2\b", "bias.fc2"),
    (r"\battn\.proj\b", "attn.out"),
    (r"\battn\b", _ATTENTION),
    (r"\b(mlp\.0|intermediate\.dense)\b", "mlp.fc1"),
    (r"\b(mlp\.3|output\.dense)\b", "mlp.fc2"),
    (r"\blayernorm_before\b", "norm1"),
    (r"\blayernorm_after\b", "norm2"),
)


def _renamed(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under the names of a `MANOClassifier`."""
    weights = {name: t for name, t in weights.items() if not name.endswith(_NO_WEIGHTS)}
    for name, t in weights.items():
        if not isinstance(t, Tensor) or not t.is_floating_point() or t.is_meta:
            kind = f"{t.dtype} on {t.device}" if isinstance(t, Tensor) else type(t).__name__
            raise InputError(
                f"{name} is of {kind}, expected a tensor of floating numbers: give the state dict of the "
                "model itself, as it was trained"
            )
    marks = [(name, mark) for mark in _MARKS for name in weights if f".{name}".endswith(f".{mark}")]
    if not marks:
        raise InputError(
            f"a state dict with {', '.join(sorted(weights)[:3])}, ... is in no known layout of Swin-V2: give "
            "one of timm, torchvision or transformers"
        )
    # Modules around the backbone put a prefix before its names. transformers' head lacks "swinv2.".
    prefix = marks[0][0].removesuffix(marks[0][1])
    named = {}
    for name, t in weights.items():
        name = name.removeprefix(prefix).removeprefix(prefix.removesuffix("swinv2."))
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        named[name] = t.flatten() if name.endswith("logit_scale") else t
    return _renumbered(_renumbered(_joined(named), "stages"), "merging")


def _joined(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the weights of queries, keys and values; return the biases of queries and of values."""
    for name in list(named):
        if name.endswith("query.weight"):
            parts = [name.replace("query.weight", f"{part}.weight") for part in ("query", "key", "value")]
            if all(part in named for part in parts):
                named[name.replace("query", "qkv")] = torch.cat([named.pop(part) for part in parts])
        elif name.endswith("qkv.bias"):  # torchvision sets the bias of keys to 0 whenever it is used
            biases = named.pop(name).chunk(3)
            named |= {name.replace("qkv.bias", f"{part}_bias"): biases["qkv".index(part)] for part in "qv"}
    return named


def _renumbered(named: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Number stages or mergings 0, 1, ...: timm's mergings start at 1, torchvision's stages are odd."""
    matches = {name: re.match(rf"{part}\.(\d+)", name) for name in named}
    used = sorted({int(match[1]) for match in matches.values() if match})
    return {
        f"{part}.{used.index(int(match[1]))}{name[match.end() :]}" if match else name: named[name]
        for name, match in matches.items()
    }


def _shape(named: Mapping[str, Tensor], name: str, n_dim: int, remedy: str = _REMEDY) -> tuple[int, ...]:
    """Return the shape of some weights, which need so many axes."""
    shape = tuple(named[name].shape) if name in named else None
    if shape is None or len(shape) != n_dim or 0 in shape:
        raise InputError(f"{name} has the shape {shape}, expected {n_dim} axes: {remedy}")
    return shape


def _options(
    named: Mapping[str, Tensor],
    weights: Mapping[str, Any],
    window: int | None,
    pretrained_window: int | Sequence[int] | None,
) -> dict[str, Any]:
    """Return the options of the `MANOClassifier` that follow from the weights and the windows."""
    blocks = {match[1] for name in named if (match := re.match(r"stages\.((\d+)\.\d+)\.", name))}
    stages = [int(block.split(".")[0]) for block in blocks]
    depths = [stages.count(stage) for stage in sorted(set(stages))]
    embed_dim, in_channels, patch_size, _ = _shape(named, "patches.project.weight", 4)
    hidden = _shape(named, "stages.0.0.mlp.fc1.weight", 2)
    scales = [f"stages.{i}.0.{_ATTENTION}.logit_scale" for i in range(len(depths))]
    side, bias_window = _windows(weights, window, pretrained_window, len(depths))
    return {
        "in_channels": in_channels,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": depths,
        "n_heads": [_shape(named, name, 1)[0] for name in scales],
        "window": side,
        "bias_window": bias_window if any(bias_window) else None,
        "mlp_ratio": hidden[0] / hidden[1],
    }


def _windows(
    weights: Mapping[str, Any], window: int | None, pretrained: int | Sequence[int] | None, n_stages: int
) -> tuple[int, list[int]]:
    """Return the window, and for each stage the window that its position bias counts in, or 0."""
    if pretrained is not None:
        pretrained = per_stage("pretrained_window", pretrained, n_stages)
    arguments, stated = {"window": window, "pretrained_window": pretrained}, _stated(weights, n_stages)
    for name, value in arguments.items():
        if value is None and name not in stated:
            raise InputError(
                f"{name}=None, but these weights do not say their windows: give the number after 'window' in "
                "the model's name, window=8, and pretrained_window=0, or, if windows were enlarged after "
                "training, those of each stage in training, (12, 12, 12, 6) for 'window12to16'"
            )
        if value not in (None, stated.get(name, value)):
            raise InputError(
                f"{name}={value}, but these weights are of windows of {stated[name]}: leave it out"
            )
    windows: dict[str, Any] = arguments | stated
    return windows["window"], windows["pretrained_window"]


def _stated(weights: Mapping[str, Any], n_stages: int) -> dict[str, Any]:
    r"""Return the options of windows that weights state, if they do.

    A table of offsets, ``(1, 2 w - 1, 2 w - 1, 2)``, ends at :math:`\log_8 (1 + 8 (w - 1) / (p - 1))`, with p
    the window of the training.
    """
    options = metadata_of(weights)
    if isinstance(options.get("window"), int):
        counted = per_stage("bias_window", options.get("bias_window") or 0, n_stages)
        return {"window": options["window"], "pretrained_window": counted}
    largest, trained = 0, {}
    for name, table in weights.items():
        match = re.search(r"\b(?:layers|features)\.(\d+)\..*relative_coords_table$", name)
        if not match or not isinstance(table, Tensor):
            continue
        side = (table.shape[1] + 1) // 2 if table.ndim == 4 and table.numel() else 0
        outermost = 8.0 ** float(table.max()) - 1 if side else 0.0
        size = 1 + 8 * (side - 1) / outermost if outermost > 0 else float(side)
        if not side or abs(size - round(size)) > 1e-3:
            raise InputError(
                f"{name} of shape {tuple(table.shape)} reaches offsets {8 * outermost:.4f}, as no window "
                "of a Swin-V2 does: give the weights as they were saved"
            )
        largest = max(largest, side)
        trained[int(match[1])] = 0 if round(size) == side else round(size)
    return {"window": largest, "pretrained_window": [trained[i] for i in sorted(trained)]} if trained else {}
