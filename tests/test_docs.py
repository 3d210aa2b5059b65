"""What the README and the tutorials show is run, as a reader would run it."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mano_op import Grid, generate_darcy, resample

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE
)

# One thread: two of these may run side by side.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_ends_in_the_assertion_on_its_number(tutorial: Path, tmp_path: Path) -> None:
    assert re.search(r"^assert .*<", tutorial.read_text(), flags=re.MULTILINE)
    run(tutorial, cwd=tmp_path)


def test_there_are_tutorials_and_blocks() -> None:
    assert TUTORIALS
    assert BLOCKS


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readmes_code_runs(number: int, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(BLOCKS[number])
    run("-W", "ignore::UserWarning", script, cwd=tmp_path)


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_importing_the_package_leaves_the_data_side_for_later() -> None:
    """xarray, zarr, dask and matplotlib take as long to import as neuraloperator, so they wait for use."""
    heavy = {"xarray", "zarr", "dask", "matplotlib", "pandas", "distributed", "onnx", "onnxruntime"}
    new = "{name.split('.')[0] for name in set(sys.modules) - before}"
    code = f"import neuralop, sys; before = set(sys.modules); import mano_op; print(sorted({new} & {heavy}))"
    assert run("-c", code, cwd=ROOT).strip() == "[]"


def test_the_package_names_what_it_offers() -> None:
    """Everything in ``__all__`` is there, whether it was imported or is on first use, and nothing else is."""
    import mano_op

    assert len(set(mano_op.__all__)) == len(mano_op.__all__)
    for name in mano_op.__all__:
        assert getattr(mano_op, name).__name__ == name
    # What type checkers see is what is there: every "import X as X" of the file, the lazy ones too.
    tree = ast.parse(Path(mano_op.__file__).read_text())
    imported = {
        alias.name: f"{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert set(imported) == set(mano_op.__all__)
    for name, module in imported.items():
        assert getattr(mano_op, name) is getattr(import_module(module), name)


def test_every_test_file_is_in_the_table_for_contributors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("| in `mano_op/`") : text.index("## What we look for")]
    named = set(
        re.findall(r"\w+", " ".join(line.split("|")[2] for line in table.splitlines() if "|" in line))
    )
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert files - named == set(), "name these in the table of CONTRIBUTING.md"


def test_a_wrong_registration_costs_what_the_design_says(tmp_path: Path) -> None:
    """Several times the error of the interpolation; measured: 8.0 % for 1.5 %."""
    grids = {n: Grid.uniform((n, n)) for n in (16, 32)}
    wrong = {n: Grid.uniform((n, n), registration="cell") for n in (16, 32)}
    store = generate_darcy(tmp_path / "darcy.zarr", [16, 32], samples={"train": 20, "test": 1})
    coarse, fine = (
        torch.as_tensor(store.dataset(n)["pressure"].values, dtype=torch.float64) for n in (16, 32)
    )

    def error(there: dict[int, Grid]) -> float:
        off = resample(coarse, there[16], there[32], "linear") - fine
        return float((off.flatten(1).norm(dim=1) / fine.flatten(1).norm(dim=1)).mean())

    assert error(wrong) > 3 * error(grids)


def test_the_version_is_one() -> None:
    import mano_op

    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{mano_op.__version__}"' in pyproject
    assert f"version: {mano_op.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {mano_op.__version__}" in (ROOT / "CHANGELOG.md").read_text()
