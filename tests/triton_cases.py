"""Errors of the kernels of Triton in its interpreter, beside double precision.

TRITON_INTERPRET=1 chooses it where Triton is imported, for all kernels of a process: this is one of its own.
Prints a JSON object: of each case the errors of the values and of each gradient, relative to the largest.
"""

import json
import sys

import numpy as np
import torch

from mano_op.grid import Axis
from mano_op.layers.operator import Lists, definition, gradients
from mano_op.layers.refinement import FineAxis, Part
from mano_op.layers.windows import Windows


def grid(*shape, finer=None, **options):
    """Windows of a grid, and those of a finer one on it, `finer` points along each axis."""
    windows = Windows(shape, **options)
    lists = windows.lists(1)
    if finer:
        wraps = options.get("periodic", [False] * len(shape))
        axes = [FineAxis(Axis("x", n, periodic=p), finer) for n, p in zip(shape, wraps, strict=True)]
        targets = Part(axes).targets(windows, torch.device("cpu"))
        missing = None if lists.missing is None else lists.missing[targets.windows]
        lists = Lists(targets.queries, lists.keys[targets.windows], targets.share, missing, 1)
    return lists


def fillers():
    """Two windows, the second with a filler that points to a target of the first."""
    queries, keys = torch.tensor([[0, 1], [2, 0]]), torch.tensor([[0, 1, 1], [2, 3, 4]])
    return Lists(queries, keys, torch.tensor([[1, 1], [1, 0]]), torch.tensor([[0, 0, 1], [0, 0, 0]]) > 0, 1)


# Of each case: lists, heads, head dimension, windows of the bias, type.
CASES = {
    "an axis with ends": (grid(7, window=4, halo=1), 2, 4, 1, torch.float32),
    "an axis that wraps": (grid(8, window=4, halo=2, periodic=[True]), 1, 6, 1, torch.float32),
    "a shift with ends": (grid(9, window=4, shift=2), 1, 8, 1, torch.float32),
    "a shift that wraps": (grid(8, window=4, shift=2, halo=1, periodic=[True]), 1, 8, 0, torch.float32),
    "overlap": (grid(9, window=4, stride=2), 1, 16, 0, torch.float32),
    "a bias for each window": (grid(9, window=4, halo=1), 2, 8, 3, torch.float32),
    "wide heads": (grid(6, window=6), 1, 64, 1, torch.float32),
    "a plane": (grid(5, 7, window=4, halo=1), 1, 8, 1, torch.float32),
    "overlap in a plane": (grid(3, 4, window=2, stride=1), 1, 12, 1, torch.float32),
    "a plane that wraps": (grid(4, 5, window=4, halo=2, periodic=[True, False]), 1, 8, 1, torch.float32),
    "a volume": (grid(2, 3, 2, window=2, halo=1), 1, 8, 1, torch.float32),
    "64 targets": (grid(4, 4, 4, window=4), 1, 16, 1, torch.float32),
    "a finer axis": (grid(8, window=4, halo=1, finer=29), 1, 8, -1, torch.float32),
    "a finer plane": (grid(4, 4, window=4, finer=11), 1, 8, -1, torch.float32),
    "a finer axis that wraps": (
        grid(8, window=4, halo=1, finer=19, periodic=[True]), 1, 4, 0, torch.float32),
    "fillers": (fillers(), 1, 8, 0, torch.float32),
    "bfloat16": (grid(7, window=4, halo=1), 1, 8, 1, torch.bfloat16),
    "float16": (grid(7, window=4, halo=1), 1, 32, 1, torch.float16),
}  # fmt: skip


def multiply_bfloat16():
    """Let the interpreter do it: it keeps their bits, and multiplies these (Triton's issue 11584)."""
    from triton.runtime import interpreter as own

    def single(t):
        if t.dtype.scalar != own.tl.bfloat16:
            return t
        return own.TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), own.tl.float32)

    product = own.InterpreterBuilder.create_dot
    own.InterpreterBuilder.create_dot = lambda self, a, b, *args: product(self, single(a), single(b), *args)


def error(result, exact):
    """The largest error over the largest value; what is no number is none in both."""
    assert result.shape == exact.shape and torch.equal(result.isnan(), exact.isnan())
    off = (result.double() - exact).nan_to_num().abs()
    return (off.max() / exact.nan_to_num().abs().max()).item() if exact.numel() else 0.0


def errors(name, lists, heads, head_dim, of_bias, dtype):
    from mano_op.layers import kernels

    lists, sources = lists._replace(heads=heads), int(lists.keys.max()) + 1
    targets = max(sources, int(lists.queries.max()) + 1)
    # As a layer has them: parts of what one linear map returned.
    q, k, v, grad = torch.randn(1, targets, 4 * heads * head_dim, dtype=torch.float64).to(dtype).chunk(4, -1)
    k, v, bias = k[:, :sources], v[:, :sources], None
    if name == "fillers":
        v[:, 3] = torch.nan
    if of_bias:
        windows, columns = (len(lists.queries) if of_bias < 0 else of_bias), lists.queries.shape[1]
        bias = torch.randn(windows, heads, lists.keys.shape[1], columns)
    exact = [None if t is None else t.double() for t in (grad, q, k, v, bias)]
    out, stats = kernels.forward(q, k, v, bias, lists)
    ds = kernels.backward(grad, stats, q, k, v, bias, lists)
    assert {t.dtype for t in (out, *ds[:3])} == {dtype}
    results = zip((out, *ds), (definition(*exact[1:], *lists), *gradients(*exact, *lists)), strict=True)
    return [error(result, reference) for result, reference in results]


if __name__ == "__main__":
    assert "mano_op.layers.kernels" not in sys.modules  # it is imported where it is used
    multiply_bfloat16()
    torch.manual_seed(0)
    print(json.dumps({name: errors(name, *case) for name, case in CASES.items()}))
