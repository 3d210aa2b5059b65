"""How fast MANO's classifier trains and in how much memory, beside Swin-V2 and ViT, on ever larger images.

What is measured is one step, forward, cross-entropy and backward, on one image of 224, 512 and 1024 squared,
in single precision, by one thread, of

* ``MANO``: `MANOClassifier` of Swin-V2-T's shape;
* ``Swin``: `SwinClassifier.tiny`, patches of 4, windows of 8, built for the size;
* ``ViT-16`` and ``ViT-4``: `ViTClassifier.tiny` with patches of 16, and of 4 as the two above have them, with
  torch's kernel of attention.

Stochastic depth is off in all. MANO and Swin shall differ by a tenth at most, in time and memory, at each
size; at 1024 MANO shall take a tenth of ViT-4's, or less.

Times are taken by turns and kept as in `speed.py`. Dense attention on the 65536 patches of 1024 squared takes
a CPU tens of minutes a step, in blocks that are all alike. So from 512 on ViT-4's time is put together: that
of a step of the model without its blocks, and 12 times that of one block, forward and backward. At 224, and
with ``--full`` at 512, it is measured as well, and stands beside.

Memory is counted beside parameters and inputs (`mano_op.memory.peak_bytes_of`). ViT's is counted on tensors
that have shapes and no data (torch's ``FakeTensorMode``), which tests hold to be the same; so the scores of
attention that is written out, whole matrices which no machine here holds, are counted too. What a process
grows by in a step stands beside, for those that are run. Floating point operations are counted for one
forward pass. Run:

    python benchmarks/images.py                 # all sizes, some twenty minutes
    python benchmarks/images.py 224 512         # some

Results go to ``benchmarks/results/images_MACHINE.json``, which says of each number whether it is measured or
put together; sizes that were not run stay as they are there. ``--quick`` takes small models on small images,
to see that everything runs: its numbers mean nothing, and go to a file of their own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import speed
import torch
import torch.nn.functional as F
from harness import write_results
from speed import HEADING, MIB, Effort, Entry, Run, begin, by_turns, command_line, grid_name, line, of_bytes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mano_op.cost import count_flops, count_parameters
from mano_op.memory import peak_bytes_of
from mano_op.vision.baselines import SwinClassifier, ViTClassifier

HERE = Path(__file__).parent
SIZES, QUICK_SIZES = (224, 512, 1024), (32, 64, 96)
SWIN_BOUND, VIT_BOUND = 1.1, 0.1
CLASSES = 1000

# Of the largest images only ViT's has to be put together; of the smallest both are had.
MEASURED, TOGETHER = "measured", "put together of a step without blocks and as many times one block"
RUN, COUNTED = "counted in a step that is run", "counted on tensors without data"


def mano(n: int, quick: bool) -> nn.Module:
    """MANO's classifier, of Swin-V2-T's shape or a small one."""
    from mano_op.vision.classifier import MANOClassifier

    small = {"embed_dim": 8, "depths": (1, 1), "n_heads": (1, 2), "window": 4} if quick else {}
    model: nn.Module = MANOClassifier(3, CLASSES, image_size=n, **small)
    return model


def swin(n: int, quick: bool) -> nn.Module:
    """Swin-V2."""
    small = {"embed_dim": 8, "depths": (1, 1), "n_heads": (1, 2), "window": 4} if quick else {}
    return SwinClassifier.tiny(3, CLASSES, image_size=n, drop_path=0.0, **small)


def vit(n: int, quick: bool, patch: int, attention: str = "sdpa", **options: Any) -> ViTClassifier:
    """ViT."""
    small = {"embed_dim": 12, "depth": 3} if quick else {}
    return ViTClassifier.tiny(
        3, CLASSES, image_size=n, patch_size=patch, attention=attention, **small | options
    )


BUILD: dict[str, Callable[[int, bool], nn.Module]] = {
    "MANO": mano,
    "Swin": swin,
    "ViT-16": lambda n, quick: vit(n, quick, 16),
    "ViT-4": lambda n, quick: vit(n, quick, 4),
}


def training_step(model: nn.Module, x: Tensor) -> Run:
    """Forward, cross-entropy and backward, to the parameters."""
    target = torch.zeros(len(x), dtype=torch.long)

    def run() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), target).backward()

    return run


def without_blocks(model: ViTClassifier) -> nn.Module:
    """Take the blocks out of a ViT, and return the first: embedding, norm and head are left."""
    block: nn.Module = model.backbone.layers[0]
    model.backbone.layers = nn.ModuleList()
    return block


def parts_of_vit(n: int, quick: bool) -> tuple[dict[str, Run], int]:
    """A step of ViT-4 without blocks, one of a block, and how many blocks there are."""
    model = vit(n, quick, 4)
    depth = len(model.backbone.layers)
    block = without_blocks(model)
    positions = model.backbone.embeddings.position_embeddings
    z = torch.randn_like(positions).requires_grad_()
    runs = {"ends": training_step(model, torch.randn(1, 3, n, n)), "block": speed.training_step(block, z)}
    return runs, depth


def without_data(n: int, quick: bool, patch: int, attention: str) -> tuple[int, int]:
    """Bytes of ViT's step at its fullest, and operations of a forward pass, and nothing is computed."""
    with torch.device("meta"):
        model = vit(n, quick, patch, attention)
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        x = torch.empty(1, 3, n, n)
        return peak_bytes_of(training_step(model, x)), count_flops(model, x)


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, images
name, n, quick, threads = sys.argv[2], int(sys.argv[3]), bool(int(sys.argv[4])), int(sys.argv[5])
torch.set_num_threads(threads)
def read(key):
    [line] = [line for line in open("/proc/self/status") if line.startswith(key)]
    return 1024 * int(line.split()[1])
step = images.training_step(images.BUILD[name](n, quick), torch.randn(1, 3, n, n))
open("/proc/self/clear_refs", "w").write("5")  # forget how large it has been
before = read("VmRSS")
step()
print(read("VmHWM") - before)
"""


def process_bytes(name: str, n: int, quick: bool) -> int:
    """By how much a process grows at most in its first step."""
    words = [str(HERE), name, str(n), str(int(quick)), str(torch.get_num_threads())]
    command = [sys.executable, "-c", PROCESS, *words]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def times_of(seconds: Sequence[float], how: str) -> Entry:
    """What is kept of one contestant's times."""
    return {
        "median": statistics.median(seconds),
        "least": min(seconds),
        "turns": len(seconds),
        "how": how,
    }


def ratio_of(case: str, ours: Entry, theirs: Entry, names: tuple[str, str], wanted: float | None) -> Entry:
    """Two contestants' times, in the form of `speed.py`; their noise is that from the median to the least."""
    each = {
        name: {"median": 1000 * t["median"], "least": 1000 * t["least"]}
        for name, t in zip(names, (ours, theirs), strict=True)
    }
    noise = sum(1 - t["least"] / t["median"] for t in (ours, theirs))
    return {
        "case": case,
        "unit": "ms",
        "of": each,
        "ratio": ours["median"] / theirs["median"],
        "ratio of the least": ours["least"] / theirs["least"],
        "noise": noise,
        "wanted": wanted,
        "turns": min(ours["turns"], theirs["turns"]),
    }


def contestants(n: int, effort: Effort) -> dict[str, Entry]:
    """Parameters, time, memory and operations of each, on images of one size."""
    quick, results, runs = effort.quick, {}, {}
    for name in ("MANO", "Swin", "ViT-16"):
        try:
            model = BUILD[name](n, quick)
        except ModuleNotFoundError as error:
            print(f"{name} is left out: {error}")
            continue
        x = torch.randn(1, 3, n, n)
        runs[name] = training_step(model, x)
        results[name] = {
            "parameters": count_parameters(model),
            "forward flops": count_flops(model, x),
            "memory": {"bytes": peak_bytes_of(runs[name]), "how": RUN},
            "process": process_bytes(name, n, quick),
        }
    for name, seconds in by_turns(runs, effort).items():
        results[name]["seconds"] = times_of(seconds, MEASURED)
    runs.clear()

    with torch.device("meta"):
        parameters = count_parameters(vit(n, quick, 4))
    kept, flops = without_data(n, quick, 4, "sdpa")
    plain, _ = without_data(n, quick, 4, "eager")
    results["ViT-4"] = {
        "parameters": parameters,
        "forward flops": flops,
        "memory": {"bytes": kept, "how": COUNTED},
        "memory, scores written out": {"bytes": plain, "how": COUNTED},
    }
    parts, depth = parts_of_vit(n, quick)
    times = by_turns(parts, effort, most=5)
    together = [ends + depth * block for ends, block in zip(times["ends"], times["block"], strict=True)]
    results["ViT-4"]["seconds, put together"] = times_of(together, TOGETHER)
    results["ViT-4"]["parts"] = {name: times_of(some, MEASURED) for name, some in times.items()}
    results["ViT-4"]["parts"]["blocks"] = depth
    sizes = QUICK_SIZES if quick else SIZES
    if n == sizes[0] or (effort.full and n == sizes[1]):
        step = training_step(BUILD["ViT-4"](n, quick), torch.randn(1, 3, n, n))
        [seconds] = by_turns({"ViT-4": step}, effort, most=3).values()
        results["ViT-4"]["seconds"] = times_of(seconds, MEASURED)
    else:
        results["ViT-4"]["seconds"] = results["ViT-4"]["seconds, put together"]
    return results


def ratios(n: int, results: Mapping[str, Entry], *, largest: bool) -> Iterator[Entry]:
    """MANO over the others, with what is wanted, and ViT-4 put together over measured."""
    for name, bound in (("Swin", SWIN_BOUND), ("ViT-4", VIT_BOUND if largest else None), ("ViT-16", None)):
        if "MANO" not in results:
            break
        ours, theirs = results["MANO"], results[name]
        yield ratio_of(f"over {name}, time", ours["seconds"], theirs["seconds"], ("MANO", name), bound)
        for key in ("memory", "memory, scores written out"):
            if key in theirs:
                both = {"MANO": ours["memory"]["bytes"], name: theirs[key]["bytes"]}
                yield of_bytes(f"over {name}, {key}", both, wanted=bound)
        if "process" in theirs:
            both = {"MANO": ours["process"], name: theirs["process"]}
            yield of_bytes(f"over {name}, growth of the process", both)
    full, together = results["ViT-4"]["seconds"], results["ViT-4"]["seconds, put together"]
    if full["how"] == MEASURED:
        yield ratio_of("ViT-4, put together over measured", together, full, ("parts", "whole"), None)


def summary(name: str, entry: Entry) -> str:
    """A contestant as a line of a table in Markdown."""
    seconds, memory = entry["seconds"], entry["memory"]["bytes"] / MIB
    mark = "" if seconds["how"] == MEASURED else ", put together"
    plain = entry.get("memory, scores written out")
    beside = f" ({plain['bytes'] / MIB:.4g} with scores)" if plain else ""
    process = f"{entry['process'] / MIB:.4g}" if "process" in entry else ""
    step = f"{seconds['median']:.4g}, least {seconds['least']:.4g}, of {seconds['turns']}{mark}"
    cells = [name, entry["parameters"], f"{entry['forward flops'] / 1e9:.4g}", step, f"{memory:.4g}{beside}"]
    return f"| {' | '.join(map(str, [*cells, process]))} |"


SUMMARY = "| | parameters | forward, 10^9 operations | step, s | memory, MiB | process, MiB |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen sizes, and write the numbers."""
    quick = "small models and images: does all run?"
    command = command_line(__doc__, "also a whole step of ViT-4 at 512: minutes", quick)
    command.add_argument("sizes", nargs="*", type=int, help=f"of {SIZES}; all by default")
    command.add_argument("--seconds", type=float, default=60.0, help="after which no further turn begins")
    args = command.parse_args(arguments)
    known = QUICK_SIZES if args.quick else SIZES
    about, path, kept = begin(command, args, args.sizes, known, "images")
    effort = Effort(args.quick, args.full, 0.2 if args.quick else args.seconds)
    for n in args.sizes or known:
        results = contestants(n, effort)
        entries = list(ratios(n, results, largest=n == known[-1]))
        size = grid_name(n, n)
        print(f"\n{size}\n", SUMMARY, "|---" * (SUMMARY.count("|") - 1) + "|", sep="\n")
        print(*(summary(name, entry) for name, entry in results.items()), sep="\n")
        print("", HEADING, "|---" * (HEADING.count("|") - 1) + "|", sep="\n")
        print(*(line(size, entry) for entry in entries), sep="\n", flush=True)
        kept[size] = {"contestants": results, "entries": entries, "versions": about["versions"]}
        report = {
            "machine": about,
            "quick": args.quick,
            "batch": 1,
            "wanted": {"over Swin": SWIN_BOUND, "over ViT-4 on the largest images": VIT_BOUND},
            "rows": kept,
        }
        write_results(path, report)


if __name__ == "__main__":
    main()
