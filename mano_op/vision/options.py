"""What the networks for images are asked for, checked before they are built."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from mano_op.errors import InputError, check_whole


def of_stages(name: str, given: object) -> list[int]:
    """A whole number for each stage.

    Examples
    --------
    >>> of_stages("depths", (2, 6))
    [2, 6]
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise InputError(
            f"{name}={given!r}, expected a whole number for each stage: give such as (2, 2, 6, 2)"
        )
    for number in given:
        check_whole(**{name: number})
    return [int(number) for number in given]


def check_heads(channels: int, n_heads: int) -> None:
    """Refuse heads that do not divide the channels."""
    if channels % n_heads:
        raise InputError(
            f"{channels} channels are not shared evenly by {n_heads} heads: give an embed_dim that is a "
            "multiple of n_heads"
        )


def check_stages(embed_dim: int, depths: object, n_heads: object) -> tuple[list[int], list[int]]:
    """The blocks and heads of each stage; refused are those that are not told, or do not fit.

    Examples
    --------
    >>> check_stages(8, (2, 2), (1, 2))
    ([2, 2], [1, 2])
    """
    blocks, heads = of_stages("depths", depths), of_stages("n_heads", n_heads)
    if len(blocks) != len(heads):
        raise InputError(
            f"depths={depths!r} and n_heads={n_heads!r} are of different lengths: give both for every stage"
        )
    for stage, of_stage in enumerate(heads):
        check_heads(embed_dim * 2**stage, of_stage)
    return blocks, heads


def check_shares(**shares: object) -> None:
    """Refuse what is no part of a whole."""
    for name, share in shares.items():
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 <= float(share) < 1:
            raise InputError(
                f"{name}={share!r}, expected a number of at least 0 and less than 1: give 0.1, say"
            )
