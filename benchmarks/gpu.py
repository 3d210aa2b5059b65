"""MANO on a GPU: is it right there, how fast is it, and how much memory does it take.

Rows, each with a name of the case, what was found, and whether it is as it should be (``ok``):

* ``kernels``: errors of the operator and its gradients, beside double precision, relative to the largest;
* ``opcheck``: `torch.library.opcheck` of both operators;
* ``step``: a training step of MANO beside the same one on the CPU, relative to the largest gradient;
* ``attention``: the operator over torch's own operations on the same windows, and its share of the bandwidth:
  bytes that have to be read and written, over those that a copy moves in that time;
* ``models``: MANO, neuraloperator's FNO and dense attention, as they are and compiled;
* ``images``: the classifier of images, in single precision and under bfloat16 autocast.

A time is the median of repeats after a warm-up, memory what torch allocated at most. No compilation begins
after four minutes; dense attention is left out beyond 2^17 points, where one step takes minutes. Run:

    python benchmarks/gpu.py                    # under five minutes
    python benchmarks/gpu.py --out FILE.json
    python benchmarks/gpu.py --small            # small sizes, on a CPU too, to see that everything runs

The exit status is 1 if something is wrong or fails.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from harness import parser, write_results
from neuralop.models import FNO
from rivals import dense_transformer
from speed import PASSES, SHAPE, Entry, Run, default_path, grid_name, mano
from torch import Tensor, nn

from mano_op import MANO
from mano_op.layers import operator
from mano_op.layers.operator import Lists
from mano_op.layers.windows import Windows
from mano_op.machine import machine
from mano_op.vision import MANOClassifier

SECONDS, DENSE_POINTS = 240.0, 2**17
SHAPES, SMALL = ((256, 256), (1024, 1024), (64, 64, 64)), ((16, 16), (8, 8, 8))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Shape, options of the windows, heads, head dimension and type.
WINDOWS: list[tuple[tuple[int, ...], dict[str, Any], int, int, torch.dtype]] = [
    ((99,), {"window": 8, "halo": 2}, 2, 4, torch.float32),
    ((64,), {"window": 8, "shift": 4, "periodic": [True]}, 3, 6, torch.float32),
    ((30, 31), {"window": 4, "halo": 1}, 4, 16, torch.float32),
    ((17, 20), {"window": 4, "stride": 2}, 2, 8, torch.float32),
    ((32, 32), {"window": 8, "halo": 1}, 2, 64, torch.float32),
    ((9, 10, 11), {"window": 4, "halo": 1}, 2, 16, torch.float32),
    ((30, 31), {"window": 4, "halo": 1}, 4, 16, torch.bfloat16),
    ((30, 31), {"window": 4, "halo": 1}, 4, 16, torch.float16),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def finished() -> None:
    """Wait for the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Run, small: bool) -> float:
    """The median time of at most 30 calls, or as many as fit into a second, after two that do not count."""
    times: list[float] = []
    began = perf_counter()
    for i in range(32):
        finished()
        start = perf_counter()
        run()
        finished()
        times += [perf_counter() - start] if i >= 2 else []
        if times and perf_counter() - began > (0.01 if small else 1.0):
            break
    return 1000 * statistics.median(times)


def measured(run: Run, small: bool) -> Entry:
    """Time of a call, and what it holds at most, with what was there before."""
    time = milliseconds(run, small)
    if DEVICE.type != "cuda":
        return {"ms": time}
    torch.cuda.reset_peak_memory_stats()
    run()
    return {"ms": time, "MiB": torch.cuda.max_memory_allocated() / 2**20}


def attention(
    shape: Sequence[int],
    options: dict[str, Any],
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    batch: int = 1,
) -> tuple[Tensor, list[Any], Lists]:
    """A gradient; queries, keys, values and bias; and windows: random arguments of the operator."""
    lists = Windows(shape, **options).to(DEVICE).lists(heads)
    points = torch.Size(shape).numel()
    grad, *qkv = torch.randn(4, batch, points, heads * head_dim, device=DEVICE).to(dtype)
    bias = torch.randn(1, heads, lists.keys.shape[1], lists.queries.shape[1], device=DEVICE)
    return grad, [*qkv, bias], lists


def largest(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest error, relative to the largest entry of each tensor."""
    errors = [
        ((a.detach().to(b) - b).abs().max() / b.abs().max()).item()
        for a, b in zip(results, exact, strict=True)
    ]
    return max(errors)


def kernels(small: bool) -> Iterator[Entry]:
    """The operator against its definition in double precision."""
    for shape, options, heads, head_dim, dtype in WINDOWS:
        grad, inputs, lists = attention(shape, options, heads, head_dim, dtype, batch=2)
        inputs = [t.requires_grad_() for t in inputs]
        out = operator.window_attention(*inputs, lists)
        out.backward(grad)
        exact = [t.detach().double() for t in (grad, *inputs)]
        error = largest([out], [operator.definition(*exact[1:], *lists)])
        slope = largest([t.grad for t in inputs], operator.gradients(*exact, *lists))
        name = f"{grid_name(*shape)}, {options}, {heads} heads of {head_dim}, {str(dtype)[6:]}"
        ok = max(error, slope) <= TOLERANCE[dtype]
        yield {"case": name, "values": error, "gradients": slope, "ok": ok}


def opcheck(small: bool) -> Iterator[Entry]:
    """The rules of torch for operators."""
    grad, inputs, lists = attention((9, 10), {"window": 4, "halo": 1}, 2, 8, torch.float32)
    ops = torch.ops.mano_op
    _, stats = ops.window_attention_forward(*inputs, *lists)
    for name, args in (("forward", (*inputs, *lists)), ("backward", (grad, stats, *inputs, *lists))):
        torch.library.opcheck(getattr(ops, f"window_attention_{name}").default, args)
        yield {"case": name, "ok": True}


def step(small: bool) -> Iterator[Entry]:
    """A training step of a model against the CPU's."""
    n = 16 if small else 64
    model = MANO(1, 1, reference_shape=(n, n), hidden_channels=32, n_layers=2, n_heads=4, n_modes=0)
    x, gradients, outputs = torch.randn(2, 1, n, n), [], []
    for device in (torch.device("cpu"), DEVICE):
        own = copy.deepcopy(model).to(device)
        out = own(x.to(device))
        out.square().mean().backward()
        outputs.append(out)
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in own.parameters() if p.grad is not None]))
    [(value, own_value), (slope, own_slope)] = outputs, gradients
    errors = largest([own_value.cpu()], [value.detach()]), largest([own_slope], [slope])
    yield {
        "case": grid_name(n, n),
        "values": errors[0],
        "gradients": errors[1],
        "ok": max(errors) <= 1e-4,
    }


def attention_alone(small: bool) -> Iterator[Entry]:
    """The operator, and how much of the memory's bandwidth it uses."""
    numbers = torch.empty(2**20 if small else 2**28, device=DEVICE)
    bandwidth = 2 * numbers.nbytes / milliseconds(numbers.clone, small)  # bytes a millisecond
    yield {"case": "copy", "GB/s": bandwidth / 1e6}
    for shape in SMALL if small else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            grad, inputs, lists = attention(shape, {"window": 4, "halo": 1}, 4, 16, dtype)
            with torch.no_grad():
                _, stats = torch.ops.mano_op.window_attention_forward(*inputs, *lists)
                for name, args, tensors in (("forward", inputs, 4), ("backward", [grad, stats, *inputs], 7)):
                    own = getattr(torch.ops.mano_op, f"window_attention_{name}")
                    plain = getattr(operator, name)
                    found = measured(partial(own, *args, *lists), small)
                    moved = tensors * grad.nbytes + lists.queries.nbytes + lists.keys.nbytes
                    yield {
                        "case": f"{grid_name(*shape)}, {str(dtype)[6:]}, {name}",
                        **found,
                        "by torch": measured(partial(plain, *args, *lists), small),
                        "share of bandwidth": moved / found["ms"] / bandwidth,
                    }


def models(small: bool) -> Iterator[Entry]:
    """MANO beside other models, in single precision."""
    began = perf_counter()
    for shape in SMALL if small else SHAPES:
        n_dim, n = len(shape), shape[0]
        contestants: dict[str, Callable[[], nn.Module]] = {
            "MANO": partial(mano, n, n_dim, **SHAPE),
            "FNO": partial(
                FNO,
                n_modes=(min(16, n),) * n_dim,
                in_channels=1,
                out_channels=1,
                hidden_channels=64,
                n_layers=4,
            ),
            "dense": partial(dense_transformer, 1, 1, **SHAPE),
        }
        x = torch.randn(1, 1, *shape, device=DEVICE)
        for name, make in contestants.items():
            if name == "dense" and n**n_dim > DENSE_POINTS:
                yield {"case": f"dense, {grid_name(*shape)}", "left out": "a step takes minutes"}
                continue
            for compiled in (False, True):
                case = f"{name}, {grid_name(*shape)}{', compiled' if compiled else ''}"
                if compiled and (small or perf_counter() - began > SECONDS):
                    yield {"case": case, "left out": "compiling takes long"}
                    continue
                yield attempt(case, make, x, compiled, small)


def attempt(case: str, make: Callable[[], nn.Module], x: Tensor, compiled: bool, small: bool) -> Entry:
    """Both passes of a model, or why there are none."""
    torch._dynamo.reset()
    try:
        model: Any = make().to(DEVICE)
        model = torch.compile(model, dynamic=False) if compiled else model
        start = perf_counter()
        passes = {what: measured(run(model, x), small) for what, run in PASSES.items()}
        return {"case": case, **passes, "seconds": round(perf_counter() - start, 1)}
    except torch.OutOfMemoryError:
        return {"case": case, "left out": "it does not fit"}
    except Exception as error:  # of a compiler: the other models are measured still
        return {"case": case, "failed": f"{type(error).__name__}: {str(error)[:300]}", "ok": False}


def images(small: bool) -> Iterator[Entry]:
    """The classifier of images."""
    shape: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1), "n_heads": (1, 2), "window": 4}
    n, batch = (32, 1) if small else (512, 8)
    x = torch.randn(batch, 3, n, n, device=DEVICE)
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast(DEVICE.type, precision, enabled=precision != torch.float32):
            case = f"{batch} of {grid_name(n, n)}, {str(precision)[6:]}"
            yield attempt(
                case, lambda: MANOClassifier(image_size=n, **(shape if small else {})), x, False, small
            )


ROWS: dict[str, Callable[[bool], Iterator[Entry]]] = {
    "kernels": kernels,
    "opcheck": opcheck,
    "step": step,
    "attention": attention_alone,
    "images": images,
    "models": models,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Check and time everything, and write it."""
    command = parser(__doc__)
    command.add_argument("--out", type=Path, help="the file, if not that of this machine")
    command.add_argument("--small", action="store_true", help="small sizes: does everything run?")
    args = command.parse_args(arguments)
    if DEVICE.type == "cpu" and not args.small:
        command.error("torch has no GPU here: --small runs on a CPU too")
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # single precision, as torch's own products
    about = machine(DEVICE, also=["triton"]) | {"kernels": operator._TRITON and DEVICE.type == "cuda"}
    path = args.out or default_path(about, args.small, "gpu")
    rows: dict[str, list[Entry]] = {}
    for row, entries in ROWS.items():
        rows[row] = []
        for entry in entries(args.small):
            print(row, entry, flush=True)
            rows[row].append(entry)
            write_results(path, {"machine": about, "small": args.small, "rows": rows})
    wrong = [entry["case"] for entries in rows.values() for entry in entries if not entry.get("ok", True)]
    if wrong:
        raise SystemExit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
