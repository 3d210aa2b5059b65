"""Random weights of Swin-V2 in the published layouts, and logits and features of the classes they belong to.

timm and torchvision lie beside the environment, in a folder that ``make`` fills: PyPI's torchvision is built
for CUDA, and its library does not load beside a torch for CPUs. They run in one process of their own, without
what their packages import beside Swin.
"""

import functools
import json
import math
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BESIDE = Path(sys.prefix) / "beside"
LAYOUTS = ("timm", "torchvision", "transformers")

# The smallest with all parts, of one window, of enlarged windows; one of four stages; a narrow Swin-V2-T.
SMALL: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2), "n_heads": (2, 4), "window": 4, "image_size": 32}
CUT = SMALL | {"image_size": 16}
ENLARGED = [SMALL | {"window": 8, "image_size": 64, "pretrained_window": sizes} for sizes in ((6, 3), (6, 0))]
DEEP = SMALL | {"depths": (2, 1, 2, 1), "n_heads": (1, 2, 4, 8), "image_size": 128}
TINY: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2, 6, 2), "n_heads": (3, 6, 12, 24), "window": 8}
TINY |= {"image_size": 256, "batch": 1}
# What the process apart makes.
_APART = {"timm": [SMALL, CUT, DEEP, *ENLARGED], "torchvision": [SMALL, DEEP]}


@dataclass(frozen=True)
class SwinSource:
    """A state dict, some images, and the logits and last features of them in evaluation mode.

    `state`, `images` and `logits_single` are in single precision, `logits` and `features` in double, with
    tables of offsets in single precision, as the classes make them. Do not write to them: they are shared.
    """

    state: dict[str, Tensor]
    images: Tensor
    logits: Tensor
    features: Tensor
    logits_single: Tensor


def swin_state(layout: str, config: dict[str, Any]) -> SwinSource:
    """Return a Swin-V2 of "timm", "torchvision" or "transformers" with random values in every parameter.

    Norms, biases and position MLPs are far from their initial values; logit scales are around 10, every third
    above the maximum of 100. Results are cached.
    """
    if layout != "transformers":
        return _sources_apart()[_key(layout, config)]
    return _source_here(_key(layout, config))


def _key(layout: str, config: dict[str, Any]) -> str:
    options = {"n_classes": 10, "batch": 2, "pretrained_window": [0] * len(config["depths"]), **config}
    return json.dumps({"layout": layout, **options})


@functools.lru_cache(maxsize=8)
def _source_here(key: str) -> SwinSource:
    with torch.random.fork_rng():
        return SwinSource(**_results(json.loads(key)))


@functools.cache
def _sources_apart() -> dict[str, SwinSource]:
    if not BESIDE.is_dir():
        pytest.skip(f"there is no {BESIDE} with timm and torchvision: make installs it")
    keys = [_key(layout, config) for layout, configs in _APART.items() for config in configs]
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/sources.pt"
        command = [sys.executable, __file__, file, *keys]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        return {key: SwinSource(**results) for key, results in torch.load(file).items()}


def _results(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `SwinSource`."""
    build, outputs = _LAYOUTS[options["layout"]]
    model = build(options).eval()
    torch.manual_seed(0)
    randomise(model)
    images = torch.randn(options["batch"], 3, options["image_size"], options["image_size"])
    state = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        logits_single, _ = outputs(model, images)
        logits, features = outputs(model.double(), images.double())
    return {
        "state": state,
        "images": images,
        "logits": logits,
        "features": features,
        "logits_single": logits_single,
    }


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
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    names = {"img_size": "image_size", "num_classes": "n_classes", "window_size": "window"}
    names |= {"embed_dim": "embed_dim", "depths": "depths", "num_heads": "n_heads"}
    names |= {"pretrained_window_sizes": "pretrained_window"}
    return SwinTransformerV2(patch_size=4, **{theirs: options[ours] for theirs, ours in names.items()})


def _torchvision(options: dict[str, Any]) -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    return SwinTransformer(
        patch_size=[4, 4],
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

    names = {"image_size": "image_size", "num_labels": "n_classes", "window_size": "window"}
    names |= {"embed_dim": "embed_dim", "depths": "depths", "num_heads": "n_heads"}
    names |= {"pretrained_window_sizes": "pretrained_window"}
    config = Swinv2Config(patch_size=4, **{theirs: options[ours] for theirs, ours in names.items()})
    return Swinv2ForImageClassification(config)


def _timm_outputs(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    return model(images), model.forward_features(images).movedim(-1, 1)


def _torchvision_outputs(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    return model(images), model.norm(model.features(images)).movedim(-1, 1)


def _transformers_outputs(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    [*_, last] = model.swinv2(images, output_hidden_states=True).reshaped_hidden_states
    return model(images).logits, model.swinv2.layernorm(last.movedim(1, -1)).movedim(-1, 1)


_LAYOUTS: dict[str, tuple[Any, Any]] = {
    "timm": (_timm, _timm_outputs),
    "torchvision": (_torchvision, _torchvision_outputs),
    "transformers": (_transformers, _transformers_outputs),
}


def _find_packages() -> None:
    """Make Swin's modules importable without all other models and operators, whose library does not load."""
    sys.path.append(str(BESIDE))
    for name in ("timm", "timm.models", "torchvision", "torchvision.models", "torchvision.ops"):
        package: Any = types.ModuleType(name)
        package.__path__, package.__version__ = [str(BESIDE / name.replace(".", "/"))], ""
        sys.modules[name] = package
    sys.modules["wandb"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    _find_packages()
    torch.save({key: _results(json.loads(key)) for key in sys.argv[2:]}, sys.argv[1])
