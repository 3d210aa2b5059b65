"""Weights of Swin-V2 in the layouts in which they are published, and what the real classes make of them.

timm and torchvision lie beside the environment, in a folder that ``make`` fills: PyPI's torchvision is built
for CUDA, and its library does not load beside a torch for CPUs. They run in a process of their own, which
declares the operators that they look for.
"""

import functools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BESIDE = Path(sys.prefix) / "beside"
LAYOUTS = ("timm", "torchvision", "transformers")

# The smallest that has all parts; one of four stages; Swin-V2-T as published.
SMALL: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2), "n_heads": (2, 4), "window": 4, "image_size": 32}
DEEP: dict[str, Any] = {
    "embed_dim": 16,
    "depths": (2, 1, 2, 1),
    "n_heads": (1, 2, 4, 8),
    "window": 4,
    "image_size": 128,
}
TINY: dict[str, Any] = {
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "n_heads": (3, 6, 12, 24),
    "window": 8,
    "image_size": 256,
    "n_classes": 1000,
    "batch": 1,
}


@dataclass(frozen=True)
class SwinSource:
    """A state dict and what the class it belongs to makes of some images, in evaluation mode.

    Attributes
    ----------
    state : dict of str to Tensor
        In single precision, as published; torchvision's has buffers too. It is shared: do not write to it.
    images : Tensor
        Single precision, ``(batch, 3, *input_size)``.
    logits, features : Tensor
        Of double precision: ``(batch, n_classes)``, and the last stage's after the last norm,
        ``(batch, channels, h, w)``. The tables of offsets are those of single precision, as the classes make
        them.
    logits_single, features_single : Tensor
        The same in single precision.
    """

    state: dict[str, Tensor]
    images: Tensor
    logits: Tensor
    features: Tensor
    logits_single: Tensor
    features_single: Tensor


def swin_state(
    layout: str,
    *,
    embed_dim: int = 16,
    depths: Sequence[int] = (2, 2),
    n_heads: Sequence[int] = (2, 4),
    window: int = 4,
    pretrained_window: Sequence[int] = (0, 0),
    image_size: int = 32,
    input_size: Sequence[int] | None = None,
    patch_size: int = 4,
    n_classes: int = 10,
    batch: int = 2,
    seed: int = 0,
) -> SwinSource:
    """A Swin-V2 of "timm", "torchvision" or "transformers" with random values in every parameter.

    Norms, biases and position MLPs are far from where they start; scales of scores are around 10, every third
    above the 100 at which they are cut. The images have `input_size`, if they are not those that the model is
    built for; timm refuses that. What is made is kept for other tests of the process.
    """
    if layout != "transformers" and not BESIDE.is_dir():
        pytest.skip(f"there is no {BESIDE} with timm and torchvision: make installs it")
    options = {
        "layout": layout,
        "embed_dim": embed_dim,
        "depths": list(depths),
        "n_heads": list(n_heads),
        "window": window,
        "pretrained_window": list(pretrained_window) if any(pretrained_window) else [0] * len(depths),
        "image_size": image_size,
        "input_size": list(input_size or (image_size, image_size)),
        "patch_size": patch_size,
        "n_classes": n_classes,
        "batch": batch,
        "seed": seed,
    }
    return _made(json.dumps(options))


@functools.lru_cache(maxsize=8)
def _made(options: str) -> SwinSource:
    if json.loads(options)["layout"] == "transformers":
        with torch.random.fork_rng():
            return _of(_results(json.loads(options)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "swin.safetensors"
        found = subprocess.run(
            [sys.executable, __file__, options, str(path)], capture_output=True, text=True, timeout=300
        )
        if found.returncode:
            raise RuntimeError(f"{options} failed:\n{found.stderr}")
        return _of(load_file(path))


def _of(tensors: dict[str, Tensor]) -> SwinSource:
    state = {name.removeprefix("state "): t for name, t in tensors.items() if name.startswith("state ")}
    return SwinSource(state, **{name: t for name, t in tensors.items() if not name.startswith("state ")})


def _results(options: dict[str, Any]) -> dict[str, Tensor]:
    """All that a `SwinSource` holds, under names that a file can have."""
    model = _MODELS[options["layout"]](options).eval()
    torch.manual_seed(options["seed"])
    randomise(model)
    images = torch.randn(options["batch"], 3, *options["input_size"])
    found = {f"state {name}": t.clone() for name, t in model.state_dict().items()} | {"images": images}
    for end, dtype in (("_single", torch.float32), ("", torch.float64)):
        with torch.no_grad():
            logits, features = _OUTPUTS[options["layout"]](model.to(dtype), images.to(dtype))
        found |= {f"logits{end}": logits, f"features{end}": features.contiguous()}
    return found


def randomise(model: nn.Module) -> None:
    """Give every parameter values that no initialisation has, and that a forward pass bears."""
    scale = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape)
            if name.endswith("logit_scale"):
                heads = scale + torch.arange(len(parameter))
                drawn = math.log(10) + 0.3 * drawn
                drawn[heads % 3 == 1] = math.log(150.0)
                scale += len(parameter)
            elif parameter.ndim > 1:
                drawn /= math.sqrt(parameter[0].numel())
            elif name.endswith("weight"):
                drawn = 1 + 0.3 * drawn  # of a norm
            else:
                drawn = 0.3 * drawn
            parameter.copy_(drawn)


def _timm(options: dict[str, Any]) -> nn.Module:
    _declare_operators()
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return SwinTransformerV2(
        img_size=options["image_size"],
        patch_size=options["patch_size"],
        num_classes=options["n_classes"],
        embed_dim=options["embed_dim"],
        depths=options["depths"],
        num_heads=options["n_heads"],
        window_size=options["window"],
        pretrained_window_sizes=options["pretrained_window"],
    )


def _torchvision(options: dict[str, Any]) -> nn.Module:
    _declare_operators()
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    return SwinTransformer(
        patch_size=[options["patch_size"]] * 2,
        embed_dim=options["embed_dim"],
        depths=options["depths"],
        num_heads=options["n_heads"],
        window_size=[options["window"]] * 2,
        num_classes=options["n_classes"],
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def _transformers(options: dict[str, Any]) -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    return Swinv2ForImageClassification(
        Swinv2Config(
            image_size=options["image_size"],
            patch_size=options["patch_size"],
            embed_dim=options["embed_dim"],
            depths=options["depths"],
            num_heads=options["n_heads"],
            window_size=options["window"],
            pretrained_window_sizes=options["pretrained_window"],
            num_labels=options["n_classes"],
        )
    )


def _timm_outputs(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    return model(images), model.forward_features(images).movedim(-1, 1)


def _torchvision_outputs(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    return model(images), model.norm(model.features(images)).movedim(-1, 1)


def _transformers_outputs(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    [*_, last] = model.swinv2(images, output_hidden_states=True).reshaped_hidden_states
    return model(images).logits, model.swinv2.layernorm(last.movedim(1, -1)).movedim(-1, 1)


_MODELS = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
_OUTPUTS = {
    "timm": _timm_outputs,
    "torchvision": _torchvision_outputs,
    "transformers": _transformers_outputs,
}


def _declare_operators() -> None:
    """Find timm and torchvision, whose registration of operators fails where its library does not load."""
    sys.path.append(str(BESIDE))
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_file(_results(json.loads(sys.argv[1])), sys.argv[2])
