"""Styles of multipole attention: the operator's, as published, and Swin's."""

from __future__ import annotations

from typing import Literal

from pydantic import StrictBool

from mano_op.layers.pyramid import Sampling
from mano_op.options import Count, options


@options
class Style:
    r"""Parts of a layer of multipole attention. The defaults are the operator's.

    Parameters
    ----------
    sampling : {"stencil", "conv", "avg_pool"}
        Restriction and prolongation; see `mano_op.layers.pyramid`.
    level_weights : {"learned", "factorial"}
        Factors of the coarser levels: one for each channel and level, or 1/(i+1) at the i-th step up.
    scores : {"dot", "cosine"}
        Scores of queries and keys, :math:`q \cdot k / \sqrt{d_h}` or the cosine of their angle, times a
        learned factor of each head, which is at most 100.
    position_bias : bool or "swin"
        Whether scores depend on the offset from query to key; see `mano_op.layers.attention.PositionBias` and
        `mano_op.layers.attention.SwinPositionBias`.
    qv_bias : bool
        Whether the maps to queries and values add a constant.
    shared_levels : bool
        Whether all levels use the same parameters.
    norms : {0, 1, 2}
        LayerNorms before the maps to queries, keys and values.
    head_dim : int, optional
        Channels of a head; ``channels // n_heads`` if not given.
    stride : int, optional
        Points from one window to the next, s; the window's own if not given.

    Examples
    --------
    >>> Style(sampling="max_pool")
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: sampling='max_pool', expected 'stencil', 'conv' or 'avg_pool'
    """

    sampling: Sampling = "stencil"
    level_weights: Literal["learned", "factorial"] = "learned"
    scores: Literal["dot", "cosine"] = "dot"
    position_bias: StrictBool | Literal["swin"] = True
    qv_bias: StrictBool = False
    shared_levels: StrictBool = False
    norms: Literal[0, 1, 2] = 1
    head_dim: Count | None = None
    stride: Count | None = None


OPERATOR = Style()
PUBLISHED = Style(
    sampling="conv", level_weights="factorial", position_bias=False, shared_levels=True, norms=2
)
SWIN = Style(scores="cosine", position_bias="swin", qv_bias=True, shared_levels=True, norms=0)
