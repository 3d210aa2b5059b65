r"""Swin Transformer V2's weights as the start of a MANO.

Swin-V2 is published in several layouts, which name the same weights differently:

=============  ======================================================  =======================================
layout         published as                                            first query, key and value weights
=============  ======================================================  =======================================
timm           ``swinv2_tiny_window8_256`` and others; the authors',   ``layers.0.blocks.0.attn.qkv.weight``
               whose mergings count from one stage earlier
torchvision    ``swin_v2_t``, ``_s``, ``_b``                           ``features.1.0.attn.qkv.weight``
transformers   ``Swinv2Model``, ``Swinv2ForImageClassification``       ``encoder.layers.0.blocks.0.attention.
                                                                       self.query.weight``, ``.key``, ...
=============  ======================================================  =======================================

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
from mano_op.options import Count, Whole, checked
from mano_op.vision.classifier import MANOClassifier
from mano_op.vision.resize import Size
from mano_op.vision.stages import per_stage
from mano_op.weights import read_weights

# Buffers, zeros, and options of neuraloperator's models.
_NO_WEIGHTS = ("_metadata", "relative_coords_table", "relative_position_index", "attn_mask", "k_bias")
_NO_SWIN = "these are not the weights of a Swin-V2 that MANO can start from"


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
    r"""Build a `MANOClassifier` that starts as a Swin Transformer V2.

    Parameters
    ----------
    weights : mapping of str to Tensor, or path
        State dict of a Swin-V2 in one of the layouts of this module, or its file: ``.safetensors``, or one of
        ``torch.save``, from which only tensors are read.
    window : int, optional
        Points along each side of its windows: the number after "window" in the name of the model. Not needed
        for weights with tables of offsets, such as torchvision's.
    pretrained_window : sequence of int or 0, optional
        Windows of each stage in training, in which the position bias counts offsets, if they were enlarged
        afterwards: ``(12, 12, 12, 6)`` for "window12to16" and "window12to24"; 0 if they were not. Not needed
        for weights with tables of offsets.
    image_size : int or sequence of int
        Pixels along the sides of the images that levels are chosen for.
    n_levels : int or sequence of int, optional
        Levels of the attention, in each stage; see `MANOClassifier`. 1 is Swin.
    n_classes : int, optional
        Classes of a new, random head; by default the head is Swin's.
    drop_path : float
        Stochastic depth of the last block; see `MANOClassifier`.

    Returns
    -------
    MANOClassifier
        In single precision and training mode.

    Raises
    ------
    InputError
        If the weights are not those of a Swin-V2, or an argument is missing or contradicts them.

    Notes
    -----
    Logits are Swin's where the points of each stage are a multiple of the window; see `MANOClassifier`.
    Images have to be normalised as for Swin: ``normalise="imagenet"`` with published weights.

    ``train_classifier(..., freeze="backbone")`` trains the head only.

    Examples
    --------
    >>> model = from_swin_v2("swinv2.safetensors", window=8, pretrained_window=0)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: swinv2.safetensors does not exist: give the folder that holds it, or
    copy it there
    """
    if isinstance(weights, str | Path):
        weights = _read(Path(weights))
    named = _renamed(weights)
    head = named.get("head.weight")
    if n_classes is None:
        if head is None or head.ndim != 2:
            raise InputError(
                "these weights have no head of shape (classes, channels), and n_classes is None: give the "
                "number of classes"
            )
        n_classes = len(head)
    if head is None or head.shape[:1] != (n_classes,):
        named = {name: t for name, t in named.items() if not name.startswith("head.")}
        head = None
    model = MANOClassifier(
        **_options(named, weights, window, pretrained_window),
        n_classes=n_classes,
        image_size=image_size,
        n_levels=n_levels,
        drop_path=drop_path,
    )
    new = (".attention.scale", ".down.", ".up.", *(("head.",) if head is None else ()))
    state = {
        name: t
        for name, t in model.state_dict().items()
        if name != "_metadata" and not any(part in name for part in new)
    }
    shapes = [{name: "x".join(map(str, t.shape)) for name, t in some.items()} for some in (named, state)]
    wrong = [
        f"{name} is {shapes[0].get(name, 'missing')}, expected {shapes[1].get(name, 'missing')}"
        for name in sorted(state.keys() | named.keys())
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{_NO_SWIN}: {'; '.join(wrong[:3])}{more}")
    with torch.no_grad():
        for name, parameter in state.items():
            parameter.copy_(named[name])
        for module in model.modules():
            if isinstance(module, MultipoleAttention):
                module.scale[:1] = 0
    return model


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_weights(path)
    tensors = read_tensors(path)
    return tensors["model"] if isinstance(tensors.get("model"), Mapping) else tensors


# A name of each layout that no other one has.
_MARKS = (
    "patch_embed.proj.weight",
    "features.0.0.weight",
    "embeddings.patch_embeddings.projection.weight",
)
_MERGING = re.compile(r"(?:encoder\.)?(?:layers|features)\.(\d+)\.(?:downsample\.)?((?:reduction|norm)\..+)")
_BLOCK = re.compile(r"(?:encoder\.)?(?:layers|features)\.(\d+)\.(?:blocks\.)?(\d+)\.(.+)")
_ATTENTION = "attention.attention.0"
# Prefixes outside of blocks and mergings, and of the rest of a name in a block; no two layouts contradict.
_OUTSIDE = {
    "patch_embed.proj": "patches.project",
    "patch_embed.norm": "patches.norm",
    "head.fc": "head",
    "features.0.0": "patches.project",
    "features.0.2": "patches.norm",
    "embeddings.patch_embeddings.projection": "patches.project",
    "embeddings.norm": "patches.norm",
    "layernorm": "norm",
    "classifier": "head",
}
_INSIDE = {
    "attn.proj": f"{_ATTENTION}.out",
    "attn.cpb_mlp.0": f"{_ATTENTION}.bias.fc1",
    "attn.cpb_mlp.2": f"{_ATTENTION}.bias.fc2",
    "attn": _ATTENTION,
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "attention.self.query.bias": f"{_ATTENTION}.q_bias",
    "attention.self.value.bias": f"{_ATTENTION}.v_bias",
    "attention.self.continuous_position_bias_mlp.0": f"{_ATTENTION}.bias.fc1",
    "attention.self.continuous_position_bias_mlp.2": f"{_ATTENTION}.bias.fc2",
    "attention.self": _ATTENTION,
    "attention.output.dense": f"{_ATTENTION}.out",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def _renamed(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under the names of a `MANOClassifier`."""
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
        name = _replaced(name, _OUTSIDE)
        if match := _MERGING.fullmatch(name):
            name = f"merging.{match[1]}.{match[2]}"
        elif match := _BLOCK.fullmatch(name):
            name = f"stages.{match[1]}.{match[2]}.{_replaced(match[3], _INSIDE)}"
        named[name] = t.flatten() if name.endswith("logit_scale") else t
    return _renumbered(_joined(named))


def _replaced(name: str, prefixes: Mapping[str, str]) -> str:
    """A name with its first known prefix, of whole words, replaced."""
    for old, new in prefixes.items():
        if f"{name}.".startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _joined(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the weights of queries, keys and values; return the biases of queries and of values."""
    for name in list(named):
        if name.endswith("query.weight"):
            parts = [name.replace("query", part) for part in ("query", "key", "value")]
            if all(part in named for part in parts):
                named[name.replace("query", "qkv")] = torch.cat([named.pop(part) for part in parts])
        elif name.endswith("qkv.bias"):
            # torchvision sets the bias of keys to 0 whenever it is used.
            q, _, v = named.pop(name).chunk(3)
            named[name.replace("qkv.bias", "q_bias")], named[name.replace("qkv.bias", "v_bias")] = q, v
    return named


def _renumbered(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number stages and mergings 0, 1, ...: timm's mergings start at 1, torchvision's stages are odd."""
    matches = {name: re.fullmatch(r"(stages|merging)\.(\d+)\.(.+)", name) for name in named}
    numbers = {
        match[1]: sorted({int(m[2]) for m in matches.values() if m and m[1] == match[1]})
        for match in matches.values()
        if match
    }
    return {
        f"{match[1]}.{numbers[match[1]].index(int(match[2]))}.{match[3]}" if match else name: named[name]
        for name, match in matches.items()
    }


def _options(
    named: Mapping[str, Tensor],
    weights: Mapping[str, Any],
    window: int | None,
    pretrained_window: int | Sequence[int] | None,
) -> dict[str, Any]:
    """Options of the `MANOClassifier` that follow from the weights and the windows."""

    def shape(name: str, n_dim: int) -> tuple[int, ...]:
        shape = tuple(named[name].shape) if name in named else None
        if shape is None or len(shape) != n_dim or 0 in shape:
            raise InputError(f"{_NO_SWIN}: {name} has the shape {shape}, expected {n_dim} axes")
        return shape

    blocks = {match[0] for name in named if (match := re.match(r"stages\.\d+\.\d+\.", name))}
    stages = [block.split(".")[1] for block in blocks]
    depths = [stages.count(str(i)) for i in range(len(set(stages)))]
    project, hidden = shape("patches.project.weight", 4), shape("stages.0.0.mlp.fc1.weight", 2)
    side, bias_window = _windows(weights, window, pretrained_window, len(depths))
    return {
        "in_channels": project[1],
        "patch_size": project[2],
        "embed_dim": project[0],
        "depths": depths,
        "n_heads": [shape(f"stages.{i}.0.{_ATTENTION}.logit_scale", 1)[0] for i in range(len(depths))],
        "window": side,
        "bias_window": bias_window if any(bias_window) else None,
        "mlp_ratio": hidden[0] / hidden[1],
    }


def _windows(
    weights: Mapping[str, Any], window: int | None, pretrained: int | Sequence[int] | None, n_stages: int
) -> tuple[int, list[int]]:
    """The window, and for each stage the window that its position bias counts in, or 0."""
    given = None if pretrained is None else per_stage("pretrained_window", pretrained, n_stages)
    tables = {name: t for name, t in weights.items() if name.endswith("relative_coords_table")}
    options = weights.get("_metadata")
    if tables:
        side, counted = _windows_of_tables(tables)
    elif isinstance(options, Mapping) and isinstance(options.get("window"), int):
        # A model of neuraloperator's registry.
        side, bias = options["window"], options.get("bias_window") or 0
        counted = list(bias) if isinstance(bias, Sequence) else [bias] * n_stages
    elif window is None or given is None:
        raise InputError(
            f"window={window} and pretrained_window={pretrained}, and these weights do not say their "
            "windows: give the number after 'window' in the name of the model, window=8, and "
            "pretrained_window=0, or, if windows were enlarged after training, those of each stage in "
            "training, (12, 12, 12, 6) for 'window12to16'"
        )
    else:
        side, counted = window, given
    for name, value, own in (("window", window, side), ("pretrained_window", given, counted)):
        if value not in (None, own):
            raise InputError(f"{name}={value}, but these weights are of windows of {own}: leave it out")
    return side, counted


def _windows_of_tables(tables: Mapping[str, Tensor]) -> tuple[int, list[int]]:
    r"""The window of tables of offsets, ``(1, 2 w - 1, 2 w - 1, 2)``, and those that each stage counts in.

    The outermost offset is :math:`\log_8 (1 + 8 (w - 1) / (p - 1))`, with p the window of the training.
    """
    largest, counted = 0, {}
    for name, table in tables.items():
        side = (table.shape[1] + 1) // 2 if table.ndim == 4 and table.numel() else 0
        outermost = 8.0 ** float(table.max()) - 1 if side else 0.0
        size = 1 + 8 * (side - 1) / outermost if outermost > 0 else float(side)
        if not side or abs(size - round(size)) > 1e-3:
            raise InputError(
                f"{name} of shape {tuple(table.shape)} reaches offsets {8 * outermost:.4f}, as no window "
                "of a Swin-V2 does: give the weights as they were saved"
            )
        largest = max(largest, side)
        stage = int(re.findall(r"(?:layers|features)\.(\d+)\.", name)[0])
        counted[stage] = 0 if round(size) == side else round(size)
    return largest, [counted[stage] for stage in sorted(counted)]
