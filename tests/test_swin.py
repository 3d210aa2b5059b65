"""Swin-V2's weights, in each published layout, as the start of a MANO: its logits, features and gradients."""

import pytest
import torch
from swin_sources import DEEP, LAYOUTS, SMALL, TINY, randomise, swin_state
from torch import nn

from mano_op import InputError, MultipoleAttention
from mano_op.vision.swin import from_swin_v2
from mano_op.weights import write_weights

WINDOW = {"timm": 4, "transformers": 4, "torchvision": None}


def started(layout, config=SMALL, **options):
    source = swin_state(layout, **config)
    window = None if layout == "torchvision" else config["window"]
    model = from_swin_v2(source.state, window=window, image_size=config["image_size"], **options)
    return source, model.double().eval()


@pytest.mark.parametrize("n_levels", [1, None, 2])
@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_begins_as_swin(layout, config, n_levels):
    source, model = started(layout, config, n_levels=n_levels)
    with torch.no_grad():
        logits, features = model(source.images.double()), model.forward_features(source.images.double())
    # Swin's tables of offsets are of single precision.
    torch.testing.assert_close(logits, source.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features[-1], source.features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_published_shape_in_single_precision(layout):
    source = swin_state(layout, **TINY)
    model = from_swin_v2(source.state, window=8).eval()
    with torch.no_grad():
        logits = model(source.images)
    assert logits.abs().max() > 1
    torch.testing.assert_close(logits.double(), source.logits, rtol=1e-5, atol=1e-5 * source.logits.abs().max())
