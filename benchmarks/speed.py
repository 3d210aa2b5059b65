"""How fast MANO is and how much memory it takes, as ratios within one run.

Rows, each of them MANO's time or memory over another's, so less is better:

* ``published``: the layer as published over the same layer written plainly (`plain_published.py`);
* ``swap``: a step of training the default model by Muon, 32 channels, over one of FNO by AdamW, as wide and
  deep, 16 modes, 8 in three dimensions; in all other rows MANO has attention and norms in every block;
* ``kernel``: attention by the compiled kernel over attention by torch's operations, 32 channels;
* ``floor``: a block over the matrix products of its own linear maps on the same tokens, and nothing else;
* ``fno``: the model over neuraloperator's FNO of 16 modes, of the same width and depth;
* ``dense``: over a transformer of the same shape with one token for each point and dense attention, by
  torch's kernel, which keeps no scores, and, on the smaller grid, written plainly; in memory over the latter,
  which is counted without computing it;
* ``swin``: over a transformer of the same shape with shifted windows (`rivals.py`);
* ``growth``: a training step a point on the largest grid over that on the smallest, and the exponent p of
  time or memory ~ points^p: between these two grids, and fitted to all;
* ``fine``: a model of 64 x 64 on a grid of 2048 x 2048, which it does by tiles: seconds a point over those on
  512 x 512, and what a process takes that does it;
* ``bf16``: under bfloat16 autocast over single precision, with the relative error of the outputs;
* ``compile``: compiled with dynamic shapes over eager, for five sizes; with ``--full`` only.

What is compared is timed by turns, a, b, a, b, ...: at most 7 times, or as often as fits into some seconds,
but twice at least. A first call of each is not counted, unless it alone takes longer than these seconds. A
time is the mean of as many calls as take 50 ms. The ratio is that of the medians, and its noise half the
range of the ratios of single turns, over it. Memory is counted (`mano_op.memory.peak_bytes_of`), beside
parameters and inputs, and has no noise. Run:

    python benchmarks/speed.py                      # all rows but compile, under ten minutes
    python benchmarks/speed.py published floor      # some
    python benchmarks/speed.py --compare            # beside the file kept for this machine
    python benchmarks/speed.py --avx2               # as on a processor without AVX-512

Results go to ``benchmarks/results/speed_MACHINE.json``; rows that were not run stay as they are there. With
``--compare`` nothing is written, and the exit status is 1 if a ratio is worse than in the file by more than
the noise, the larger of both and at least 15 %. ``--quick`` shrinks all grids, to see that everything runs:
its numbers mean nothing, and go to a file of their own.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np
import torch
from harness import RESULTS, parser, read_results, write_results
from neuralop.models import FNO
from plain_published import PlainPublished
from rivals import dense_transformer, swin_transformer
from torch import Tensor, nn

from mano_op import MANO, MultipoleAttention, MuonAdamW
from mano_op.layers.native import kernel as native
from mano_op.machine import machine
from mano_op.memory import peak_bytes_of

TURNS, SHORTEST, LEAST_NOISE = 7, 0.05, 0.15
WIDTH, DEPTH, HEADS = 64, 4, 4
SHAPE: dict[str, Any] = {"hidden_channels": WIDTH, "n_layers": DEPTH, "n_heads": HEADS}
# Multipole attention in every block: what is compared with other attentions.
ATTENTION: dict[str, Any] = {"n_modes": 0, "norm": True, "window": 4, "halo": 1}
MIB = 2**20

Run = Callable[[], Any]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much is run.

    Attributes
    ----------
    quick, full : bool
    seconds : float
        For one comparison, after which no further turn begins.
    """

    quick: bool = False
    full: bool = False
    seconds: float = 8.0

    def sizes(self, real: Sequence[int], *, quick: Sequence[int], full: Sequence[int] = ()) -> list[int]:
        """Points along each axis of the grids."""
        if self.quick:
            return list(quick)
        return [*real, *(full if self.full else ())]


def forward(module: nn.Module, x: Tensor) -> Run:
    """A forward pass without gradients."""

    def run() -> Tensor:
        with torch.no_grad():
            out: Tensor = module(x)
            return out

    return run


def training_step(module: nn.Module, x: Tensor) -> Run:
    """A forward and a backward pass, to the parameters, and to the input if it asks for it."""

    def run() -> None:
        module.zero_grad()
        x.grad = None
        out = module(x)
        out.backward(out.detach())  # of half the sum of squares, whose own passes are not timed

    return run


PASSES = {"forward": forward, "training step": training_step}


def by_turns(contestants: Mapping[str, Run], effort: Effort, most: int = TURNS) -> dict[str, list[float]]:
    """Seconds that a call of each takes, measured by turns."""
    calls, long = {}, {}
    for name, run in contestants.items():
        start = perf_counter()
        run()
        first = perf_counter() - start
        calls[name] = max(1, round(SHORTEST / first))
        if first > effort.seconds:
            long[name] = first
    times: dict[str, list[float]] = {name: [] for name in contestants}
    began = perf_counter()
    for turn in range(most):
        if turn >= 2 and perf_counter() - began > effort.seconds:
            break
        for name, run in contestants.items():
            if turn == 0 and name in long:
                times[name].append(long[name])
                continue
            start = perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((perf_counter() - start) / calls[name])
    return times


def of_times(case: str, times: Mapping[str, Sequence[float]], *, wanted: float | None = None) -> Entry:
    """What is kept of two contestants' times, ours first."""
    ours, theirs = times.values()
    ratio = statistics.median(ours) / statistics.median(theirs)
    turns = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "case": case,
        "unit": "ms",
        "of": {
            name: {"median": 1000 * statistics.median(some), "least": 1000 * min(some)}
            for name, some in times.items()
        },
        "ratio": ratio,
        "noise": (max(turns) - min(turns)) / 2 / ratio,
        "wanted": wanted,
        "turns": len(turns),
    }


def of_bytes(case: str, sizes: Mapping[str, float], *, wanted: float | None = None) -> Entry:
    """What is kept of two contestants' memory, ours first."""
    ours, theirs = sizes.values()
    each = {name: {"median": size / MIB} for name, size in sizes.items()}
    return {"case": case, "unit": "MiB", "of": each, "ratio": ours / theirs, "noise": 0.0, "wanted": wanted}


def grid_name(*shape: int) -> str:
    """Such as "64 x 64"."""
    return " x ".join(map(str, shape))


def mano(n: int, n_dim: int = 2, **options: Any) -> MANO:
    """MANO of attention alone, trained on this grid."""
    return MANO(1, 1, n_dim=n_dim, reference_shape=(n,) * n_dim, **(ATTENTION | options))


def features(n: int) -> Tensor:
    """Hidden fields as a block meets them: channels last in memory, and asked for their gradient."""
    return torch.randn(1, n, n, WIDTH).movedim(-1, 1).requires_grad_()


def pair(
    n: int,
    x: Tensor,
    contestants: Mapping[str, nn.Module],
    effort: Effort,
    wanted: Mapping[str, float | None],
    memory: float | None = None,
    *,
    count: bool = True,
) -> Iterator[Entry]:
    """Time, and what a pass takes in memory, of two modules on the same input."""
    for what, make in PASSES.items():
        runs = {name: make(module, x) for name, module in contestants.items()}
        case = f"{grid_name(n, n)}, {what}"
        yield of_times(case, by_turns(runs, effort), wanted=wanted.get(what))
        if count:
            sizes = {name: peak_bytes_of(run) for name, run in runs.items()}
            yield of_bytes(f"{case}, memory", sizes, wanted=memory)


def published(effort: Effort) -> Iterator[Entry]:
    """The published layer over the plain one."""
    for n in effort.sizes([128], quick=[16]):
        layer, plain = MultipoleAttention.published(WIDTH, HEADS), PlainPublished(WIDTH, HEADS)
        plain.load_state_dict(layer.state_dict())
        both = {"layer": layer, "plain": plain}
        yield from pair(n, features(n), both, effort, dict.fromkeys(PASSES))


class Products(nn.Module):
    """The linear maps of a block on the tokens of its grid, one after the other, and nothing else."""

    def __init__(self, channels: int, expansion: float = 2.0) -> None:
        super().__init__()
        hidden = round(expansion * channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, *grid)``, channels last in memory, to tokens."""
        tokens = x.movedim(1, -1)
        # A third of the numbers, as they lie: no copy.
        third = self.qkv(tokens).view(3, *tokens.shape)[0]
        out: Tensor = self.fc2(self.fc1(self.out(third)))
        return out


def swap(effort: Effort) -> Iterator[Entry]:
    """The default MANO over FNO, with the steps of the optimisers that they are trained by."""

    def optimised(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> Run:
        step = training_step(model, x)

        def run() -> None:
            step()
            optimizer.step()

        return run

    shape = {"hidden_channels": 32, "n_layers": DEPTH}
    cases = {(2, 64, 2): 2.0, (1, 16, 3): 2.0, (1, 256, 2): 1.5, (8, 32, 2): 2.0, (8, 256, 1): 2.0}
    for (batch, n, n_dim), wanted in ({(2, 8, 2): 2.0} if effort.quick else cases).items():
        x = torch.randn(batch, 1, *[n] * n_dim)
        ours = MANO(1, 1, n_dim=n_dim, reference_shape=(n,) * n_dim, **shape)
        other = FNO(n_modes=(8 if n_dim == 3 else 16,) * n_dim, in_channels=1, out_channels=1, **shape)
        runs = {
            "MANO": optimised(ours, x, MuonAdamW(ours, 1e-6, 1e-4)),
            "FNO": optimised(other, x, torch.optim.AdamW(other.parameters(), 1e-6)),
        }
        case = f"{batch} of {grid_name(*[n] * n_dim)}, training step"
        yield of_times(case, by_turns(runs, effort), wanted=wanted)


def kernel(effort: Effort) -> Iterator[Entry]:
    """Attention with the compiled kernel, and without."""

    def without(run: Run) -> Run:
        def run_without() -> Any:
            with mock.patch.object(native, "usable", return_value=False):
                return run()

        return run_without

    for n in effort.sizes([16, 32, 64, 128], quick=[16]):
        model, batch = mano(n), {16: 20, 32: 8, 64: 2, 128: 1}[n]
        x = torch.randn(batch, 1, n, n)
        for name, do in PASSES.items():
            run = do(model, x)
            times = by_turns({"compiled": run, "by torch": without(run)}, effort)
            yield of_times(f"{batch} of {grid_name(n, n)}, {name}", times)


def floor(effort: Effort) -> Iterator[Entry]:
    """A block over its own matrix products."""
    for n in effort.sizes([64, 128, 256, 512], quick=[16, 32]):
        [block] = mano(n, hidden_channels=WIDTH, n_layers=1).blocks
        both = {"block": block, "products": Products(WIDTH)}
        wanted = {"forward": 2.0, "training step": 2.5}
        yield from pair(n, features(n), both, effort, wanted, count=False)


def fno(effort: Effort) -> Iterator[Entry]:
    """MANO over FNO."""
    for n in effort.sizes([256], quick=[32]):
        other = FNO(n_modes=(16, 16), in_channels=1, out_channels=1, hidden_channels=WIDTH, n_layers=DEPTH)
        both = {"MANO": mano(n, **SHAPE), "FNO": other}
        x = torch.randn(1, 1, n, n)
        yield from pair(n, x, both, effort, dict.fromkeys(PASSES, 1.0), memory=1.0)


def dense(effort: Effort) -> Iterator[Entry]:
    """MANO over dense attention."""
    small, large = effort.sizes([64, 128], quick=[8, 16])
    for n, wanted in ((small, 1 / 30), (large, 1 / 100)):
        both = {"MANO": mano(n, **SHAPE), "dense": dense_transformer(1, 1, **SHAPE)}
        x = torch.randn(1, 1, n, n)
        for what, make in PASSES.items():
            if n == small or what == "forward" or effort.full:
                runs = {name: make(module, x) for name, module in both.items()}
                times = by_turns(runs, effort, most=TURNS if n == small else 1)
                yield of_times(f"{grid_name(n, n)}, {what}", times, wanted=wanted)
        if n == small:
            kept = {"MANO": both["MANO"], "dense, plain": dense_transformer(1, 1, plain=True, **SHAPE)}
            for what, make in PASSES.items():
                runs = {name: make(module, x) for name, module in kept.items()}
                case = f"{grid_name(n, n)}, {what}, scores kept"
                yield of_times(case, by_turns(runs, effort), wanted=wanted)
        plain = dense_transformer(1, 1, plain=True, **SHAPE).to("meta")
        steps = {
            "MANO": training_step(both["MANO"], x),
            "dense, plain": training_step(plain, torch.empty(x.shape, device="meta")),
        }
        sizes = {name: peak_bytes_of(run) for name, run in steps.items()}
        yield of_bytes(f"{grid_name(n, n)}, training step, memory", sizes, wanted=1.0)


def swin(effort: Effort) -> Iterator[Entry]:
    """MANO over shifted windows."""
    for n in effort.sizes([128], quick=[16]):
        both = {"MANO": mano(n, **SHAPE), "Swin": swin_transformer(1, 1, **SHAPE)}
        x = torch.randn(1, 1, n, n)
        yield from pair(n, x, both, effort, dict.fromkeys(PASSES, 1.0), count=False)


def growth(effort: Effort) -> Iterator[Entry]:
    """What a training step takes, by the number of points."""
    for n_dim, sizes in (
        (2, effort.sizes([64, 128, 256, 512, 1024], quick=[16, 32, 64])),
        (3, effort.sizes([16, 32, 64], quick=[8, 12, 16], full=[96])),
    ):
        steps = {
            grid_name(*[n] * n_dim): training_step(mano(n, n_dim), torch.randn(1, 1, *[n] * n_dim))
            for n in sizes
        }
        points = [n**n_dim for n in sizes]
        times = by_turns(steps, effort)
        yield of_growth(f"{n_dim}-D, time a point", times, points, of_times)
        peaks = {name: [peak_bytes_of(step)] for name, step in steps.items()}
        yield of_growth(f"{n_dim}-D, memory a point", peaks, points, _of_peaks)
        if n_dim == 2:
            name = list(steps)[-1]
            limit = {f"{name}, process": resident_bytes(sizes[-1]), "limit": 8 * 2**30}
            yield of_bytes(f"{name}, training step, process", limit, wanted=1.0)


def _of_peaks(case: str, peaks: Mapping[str, Sequence[float]], *, wanted: float) -> Entry:
    return of_bytes(case, {name: size for name, [size] in peaks.items()}, wanted=wanted)


def of_growth(
    case: str, measured: Mapping[str, Sequence[float]], points: Sequence[int], kept: Callable[..., Entry]
) -> Entry:
    """The largest grid over the smallest, for each point of theirs, and the exponents."""
    middles = [statistics.median(values) for values in measured.values()]
    (first, *_, last), names = points, list(measured)
    each = {names[i]: [1000 * value / n for value in measured[names[i]]] for i, n in ((-1, last), (0, first))}
    entry = kept(case, each, wanted=(last / first) ** 0.05)
    scale = 1e-3 if entry["unit"] == "ms" else MIB
    entry["whole steps"] = {name: value / scale for name, value in zip(names, middles, strict=True)}
    entry["whole steps' unit"] = entry["unit"]
    entry["unit"] = {"ms": "us a point", "MiB": "MiB per 1000 points"}[entry["unit"]]
    entry["exponent"] = math.log(middles[-1] / middles[0]) / math.log(last / first)
    entry["fitted exponent"] = float(np.polyfit(np.log(points), np.log(middles), 1)[0])
    return entry


RESIDENT = """
import sys, torch
from mano_op import MANO
n, reference, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
options = {"n_modes": 0, "norm": True}
model = MANO(1, 1, reference_shape=(reference, reference), **options)
if n == reference:
    model(torch.randn(1, 1, n, n)).square().mean().backward()
else:
    with torch.no_grad():
        model.eval()(torch.randn(1, 1, n, n))
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(1024 * int(line.split()[1]))
"""


def resident_bytes(n: int, reference: int | None = None) -> int:
    """The most memory of a process that makes a training step, or predicts if the reference is another grid.

    Python and torch are included.
    """
    command = [sys.executable, "-c", RESIDENT, str(n), str(reference or n), str(torch.get_num_threads())]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def fine(effort: Effort) -> Iterator[Entry]:
    """A model on far finer grids than its own."""
    [reference] = effort.sizes([64], quick=[8])
    sizes = effort.sizes([512, 2048], quick=[32, 64])
    model = mano(reference).eval()
    runs = {grid_name(n, n): forward(model, torch.randn(1, 1, n, n)) for n in sizes}
    times = by_turns(runs, effort, most=2)
    yield of_growth(
        f"from {grid_name(reference, reference)}, time a point", times, [n * n for n in sizes], of_times
    )
    name = list(runs)[-1]
    limit = {f"{name}, process": resident_bytes(sizes[-1], reference), "limit": 2**30}
    yield of_bytes(f"from {grid_name(reference, reference)}, {name}, process", limit, wanted=1.0)


def bf16(effort: Effort) -> Iterator[Entry]:
    """Under bfloat16 autocast over single precision."""
    for n in effort.sizes([256], quick=[16]):
        model, x = mano(n, **SHAPE), torch.randn(1, 1, n, n)

        def half(run: Run) -> Run:
            def cast() -> Any:
                with torch.autocast("cpu", torch.bfloat16):
                    return run()

            return cast

        single, halved = (make(forward(model, x))() for make in (lambda run: run, half))
        error = float((halved.float() - single).norm() / single.norm())
        for what, make in PASSES.items():
            runs = {"bfloat16": half(make(model, x)), "float32": make(model, x)}
            times = by_turns(runs, effort)
            yield {**of_times(f"{grid_name(n, n)}, {what}", times), "relative error of outputs": error}


def compiled(effort: Effort) -> Iterator[Entry]:
    """Compiled over eager."""
    from torch._dynamo.utils import counters

    sizes = effort.sizes([32, 48, 64, 96, 128], quick=[8, 12])
    case = f"{sizes[0]} to {sizes[-1]} squared, forward"
    model = MANO(1, 1, hidden_channels=16, n_layers=1, n_heads=2, n_levels=2, **ATTENTION).eval()
    inputs = [torch.randn(1, 1, n, n) for n in sizes]
    torch._dynamo.reset()
    counters.clear()
    fast = torch.compile(model, dynamic=True)

    def over(function: Callable[[Tensor], Tensor]) -> Run:
        def run() -> None:
            with torch.no_grad():
                for x in inputs:
                    function(x)

        return run

    try:
        start = perf_counter()
        over(fast)()
        took = perf_counter() - start
    except Exception as error:
        yield {"case": case, "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
        return
    entry = of_times(case, by_turns({"compiled": over(fast), "eager": over(model)}, effort))
    graphs = counters["stats"]["unique_graphs"]
    yield {**entry, "sizes": len(sizes), "graphs": graphs, "seconds to compile": round(took)}


ROWS: dict[str, Callable[[Effort], Iterator[Entry]]] = {
    "published": published,
    "kernel": kernel,
    "floor": floor,
    "swap": swap,
    "fno": fno,
    "dense": dense,
    "swin": swin,
    "growth": growth,
    "fine": fine,
    "bf16": bf16,
    "compile": compiled,
}
HEADING = "| row | case | ours | other | ratio | wanted | noise | beside |"


def line(row: str, entry: Entry) -> str:
    """An entry as a line of a table in Markdown."""
    if "failed" in entry:
        return f"| {row} | {entry['case']} | | | | | | failed: {entry['failed']} |"
    each = [f"{name} {some['median']:.4g} {entry['unit']}" for name, some in entry["of"].items()]
    known = {"case", "unit", "of", "ratio", "noise", "wanted", "turns", "whole steps", "whole steps' unit"}
    beside = [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in entry.items()
        if name not in known
    ]
    wanted = "" if entry["wanted"] is None else f"<= {entry['wanted']:.3g}"
    turns = entry.get("turns")  # memory has none
    noise = "" if turns is None else "one turn" if turns == 1 else f"{entry['noise']:.0%}"
    cells = [row, entry["case"], *each, f"{entry['ratio']:.3g}", wanted, noise, ", ".join(beside)]
    return f"| {' | '.join(cells)} |"


def compare(kept: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], bool]:
    """What became of the ratios of a file, and whether one of them is worse.

    Parameters
    ----------
    kept, new : mapping
        Of a row to its ``entries``.

    Returns
    -------
    list of str, bool

    Examples
    --------
    >>> old = {"swin": {"entries": [{"case": "forward", "ratio": 1.0, "noise": 0.02}]}}
    >>> new = {"swin": {"entries": [{"case": "forward", "ratio": 1.3, "noise": 0.2}]}}
    >>> compare(old, new)
    (['swin, forward: 1 -> 1.3, noise 20%: WORSE'], True)
    """
    lines, worse = [], False
    for row, about in new.items():
        before = {entry["case"]: entry for entry in kept.get(row, {"entries": []})["entries"]}
        for entry in about["entries"]:
            old, name = before.get(entry["case"], {}), f"{row}, {entry['case']}"
            if "ratio" not in old:
                lines.append(f"{name}: not in the file")
            elif "ratio" not in entry:
                lines.append(f"{name}: {old['ratio']:.3g} -> failed: WORSE")
                worse = True
            else:
                noise = max(LEAST_NOISE, old["noise"], entry["noise"])
                is_worse = entry["ratio"] > old["ratio"] * (1 + noise)
                said = ": WORSE" if is_worse else ""
                lines.append(f"{name}: {old['ratio']:.3g} -> {entry['ratio']:.3g}, noise {noise:.0%}{said}")
                worse |= is_worse
    return lines, worse


def default_path(about: Mapping[str, Any], quick: bool, name: str) -> Path:
    """The file of a machine."""
    words = " ".join(str(about[name]) for name in ("processor", "instructions", "threads", "device"))
    words += " quick" if quick else ""
    return RESULTS / f"{name}_{re.sub('[^a-z0-9]+', '-', words.lower()).strip('-')}.json"


def command_line(description: str | None, full: str, quick: str) -> argparse.ArgumentParser:
    """Return the options of a script that measures."""
    command = parser(description)
    command.add_argument("--full", action="store_true", help=full)
    command.add_argument("--quick", action="store_true", help=quick)
    command.add_argument("--threads", type=int, default=1)
    command.add_argument(
        "--avx2", action="store_true", help="use no AVX-512, in torch or the compiled library"
    )
    command.add_argument("--out", type=Path, help="the file, if not that of this machine")
    return command


def without_avx512() -> None:
    """Start this script again with what keeps torch, its libraries and the compiler to AVX2."""
    compiler = Path(tempfile.mkdtemp()) / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -march=x86-64-v3\n')
    compiler.chmod(0o700)
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    arguments = [argument for argument in sys.argv if argument != "--avx2"]
    os.execve(sys.executable, [sys.executable, *arguments], os.environ | limits | {"CXX": str(compiler)})


def begin(
    command: argparse.ArgumentParser,
    args: argparse.Namespace,
    chosen: Iterable[Any],
    known: Iterable[Any],
    name: str,
) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """Check what was chosen and set the threads; return the machine, its file, and the rows of the file."""
    if unknown := set(chosen) - set(known):
        command.error(f"no {', '.join(sorted(map(str, unknown)))}: give some of {', '.join(map(str, known))}")
    if args.threads < 1:
        command.error("--threads is at least 1")
    if args.avx2:
        without_avx512()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    about = machine()
    print(f"{about['processor']}, {about['instructions']}, threads: {about['threads']}\n")
    path = args.out or default_path(about, args.quick, name)
    return about, path, read_results(path).get("rows", {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the chosen rows, and write or compare them."""
    command = command_line(__doc__, "also what takes minutes", "small grids: do all rows run?")
    command.add_argument("rows", nargs="*", metavar="ROWS", help=f"of {', '.join(ROWS)}; all by default")
    command.add_argument("--compare", action="store_true", help="beside the file; writes nothing")
    args = command.parse_args(arguments)
    about, path, kept = begin(command, args, args.rows, ROWS, "speed")
    rows = args.rows or [row for row in ROWS if row != "compile" or args.full]
    if "compile" in rows and not args.full:
        command.error("compile takes minutes: ask for it with --full")
    effort = Effort(args.quick, args.full, **({"seconds": 0.2} if args.quick else {}))
    new: dict[str, Any] = {}
    print(HEADING, "|---" * HEADING.count(" | ") + "|---|", sep="\n", flush=True)
    for row in rows:
        start, entries = perf_counter(), []
        for entry in ROWS[row](effort):
            print(line(row, entry), flush=True)
            entries.append(entry)
        new[row] = {
            "entries": entries,
            "seconds": round(perf_counter() - start, 1),
            "versions": about["versions"],
        }
    if not args.compare:
        report = {"machine": about, "quick": args.quick, "rows": {**kept, **new}}
        write_results(path, report)
        return
    if not kept:
        print(f"\nthere is no {path} to compare with: run without --compare to make it")
        return
    lines, worse = compare(kept, new)
    print("", *lines, sep="\n")
    if worse:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
