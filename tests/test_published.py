"""The published model is its composition. Its layer: `test_multipole`; vectors: `test_golden`."""

import pytest
import torch
from test_multipole import assert_same, draw, randomise

from mano_op.layers.multipole import MultipoleAttention
from mano_op.models.published import PublishedMANO


@pytest.mark.parametrize("shape", [(12,), (7, 6), (4, 5, 3)])
def test_published_model_is_its_composition(shape):
    """Lift each point; attention and a GELU MLP, each added to what it takes in; a tanh projection."""
    layer = {"head_dim": 3, "window": 3, "stride": 2, "rate": 3, "n_levels": 2, "sampling": "avg_pool"}
    ratios = {"channel_mlp_expansion": 1.5, "projection_channel_ratio": 2.0}
    options = {"hidden_channels": 4, "n_layers": 2, "n_heads": 2, "n_dim": len(shape), **layer, **ratios}
    model, x = randomise(PublishedMANO(3, 2, **options)), draw(2, 3, *shape)
    z = model.lifting(x.movedim(1, -1))
    for block in model.blocks:
        attention = MultipoleAttention.published(4, 2, n_dim=len(shape), **layer).double()
        attention.load_state_dict(block.attention.state_dict())
        z = z + attention(z.movedim(-1, 1)).movedim(1, -1)
        z = z + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.mlp.norm(z))))
    expected = model.projection.fc2(model.projection.fc1(model.norm(z)).tanh()).movedim(-1, 1)
    assert_same(model(x), expected)
    assert torch.equal(model(x, y=draw(2, 2, *shape), name="sample 3"), model(x))
