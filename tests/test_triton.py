"""The kernels of Triton without a GPU: their values, and the registers that they take if compiled for one."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gpu
import pytest
import torch
from triton_cases import CASES

from mano_op.layers.operator import Lists

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
TOLERANCE = {torch.float32: (2e-6, 1e-5), torch.bfloat16: (1e-2, 2e-2), torch.float16: (1e-3, 2e-3)}


# Values, in Triton's interpreter


@pytest.fixture(scope="module")
def errors():
    """Of each case: errors of values and gradients relative to the largest."""
    command = [sys.executable, "-W", "error", Path(__file__).with_name("triton_cases.py")]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_kernels_match_the_definition(errors, name):
    of_values, of_gradients = TOLERANCE[CASES[name][-1]]
    value, *slopes = errors[name]
    assert value <= of_values and max(slopes) <= of_gradients


@needs_triton
def test_no_windows_leave_zeros():
    from mano_op.layers import kernels

    q, none = torch.randn(1, 5, 8), torch.zeros(0, 4, dtype=torch.int32)
    lists = Lists(none, none, None, None, 2)
    bias = torch.randn(1, 2, 4, 4)
    out, stats = kernels.forward(q, q, q, bias, lists)
    for t in (out, *kernels.backward(q, stats, q, q, q, bias, lists)):
        assert not t.any()


# Where they are used


@needs_triton
def test_products_are_exact_unless_torch_may_use_tf32():
    from mano_op.layers import kernels

    assert kernels._precision() == "ieee"
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert kernels._precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@needs_triton
def test_torch_does_what_kernels_cannot(monkeypatch):
    from mano_op.layers import kernels

    def taken(dtype, head_dim=8):
        q = torch.zeros(1, 1, 2 * head_dim, dtype=dtype)
        return kernels.usable(2, q, q, q, None)

    assert all(map(taken, (torch.float32, torch.bfloat16, torch.float16))) and taken(torch.float32, 64)
    assert not taken(torch.float64) and not taken(torch.float32, 65)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not taken(torch.float32)


# Compiled ahead of time


class Recorder:
    """Stands for a kernel, and keeps what it is started with."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda **arguments: setattr(self, "arguments", arguments)


def launched(monkeypatch, targets, sources, head_dim, dtype):
    """Both kernels with the arguments that they get for windows of such a size."""
    from mano_op.layers import kernels

    recorders = [Recorder(kernels._forward), Recorder(kernels._backward)]
    for recorder, name in zip(recorders, ("_forward", "_backward"), strict=True):
        monkeypatch.setattr(kernels, name, recorder)
    q = torch.zeros(2, 3 * sources, 2 * head_dim, dtype=dtype)
    queries, keys = (torch.zeros(3, n, dtype=torch.int32) for n in (targets, sources))
    lists = Lists(queries, keys, torch.ones(queries.shape).double(), keys == 0, 2)
    bias = torch.zeros(1, 2, sources, targets)
    _, stats = kernels.forward(q, q, q, bias, lists)
    kernels.backward(q, stats, q, q, q, bias, lists)
    return [(recorder.kernel, recorder.arguments) for recorder in recorders]


def compiled(kernel, arguments, target):
    """The kernel as Triton compiles it where it is started with these arguments."""
    import triton

    options = {name: arguments[name] for name in ("num_warps", "num_stages")}
    signature, constants, divisible = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        whole, special = isinstance(value, int), not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (whole and special and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = "i32" if whole else "fp32" if isinstance(value, float) else TYPES[value.dtype]
        if isinstance(value, torch.Tensor) or (whole and special and value % 16 == 0):
            divisible[i,] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, constants, divisible)
    return triton.compile(source, target=target, options=options)


def resources(kernel, log):
    """Registers of a thread, and bytes of them that are kept in memory for want of registers."""
    if "amdgcn" in kernel.asm:
        numbers = dict(re.findall(r"\.(\w+): +(\d+)", kernel.asm["amdgcn"]))
        return int(numbers["vgpr_count"]), int(numbers["private_segment_fixed_size"])
    return int(re.search(r"Used (\d+) registers", log)[1]), sum(
        map(int, re.findall(r"(\d+) bytes spill", log))
    )


WINDOWS = [(16, 36, 8), (16, 36, 32), (64, 216, 16)]
MORE = [(16, 27, 64), (32, 50, 16), (32, 50, 32), (64, 216, 32), (400, 216, 64)]
nightly = pytest.mark.nightly


@needs_triton
@pytest.mark.parametrize("chip", [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)], ids=str)
@pytest.mark.parametrize(
    ("window", "dtype"),
    [
        *((window, torch.float32) for window in WINDOWS),
        *(pytest.param(window, torch.float32, marks=nightly) for window in MORE),
        *(pytest.param(window, torch.bfloat16, marks=nightly) for window in WINDOWS + MORE),
    ],
)
def test_kernels_fit_the_registers_of_a_gpu(window, dtype, chip, tmp_path, monkeypatch, capsys):
    """Where they spilled, memory would be what they wait for."""
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    for kernel, arguments in launched(monkeypatch, *window, dtype):
        binary = compiled(kernel, arguments, GPUTarget(*chip))
        registers, spilled = resources(binary, capsys.readouterr().out)
        # Of two registers ptxas spills some to have more threads, far below 255.
        assert spilled <= (0 if window in WINDOWS else 16) and registers <= (256 if chip[0] == "hip" else 255)
        assert binary.metadata.shared <= 2**16


def test_benchmark_of_gpus_runs_without_one(tmp_path):
    gpu.main(["--small", "--out", str(tmp_path / "gpu.json")])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["rows"]) == set(gpu.ROWS) and "torch" in report["machine"]["versions"]
    assert len(report["rows"]["kernels"]) == 8
    with pytest.raises(SystemExit):
        gpu.main([])
