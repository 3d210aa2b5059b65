"""A sample has the same bits on any machine that has the same libraries, however many cores it lends."""

import os
import subprocess
import sys

BITS = """
import hashlib
from mano_op.grid import Grid
from mano_op.problems.burgers import Burgers
from mano_op.problems.navier_stokes import NavierStokes
from mano_op.problems.poisson import Poisson
from mano_op.problems.reaction_diffusion import FitzHughNagumo

brief, square = {"final_time": 0.1, "n_steps": 2}, [(-1.0, 1.0)] * 2
samples = (
    Burgers(**brief).sample(0, 0, [Grid.uniform((500,), periodic=True)]),
    NavierStokes(**brief).sample(0, 0, [Grid.uniform((160, 200), periodic=True)]),
    Poisson().sample(0, 0, [Grid.uniform((64, 48, 80))]),
    FitzHughNagumo(**brief).sample(0, 0, [Grid.uniform((160, 200), domain=square)]),
)
bits = {
    name: hashlib.sha256(values.tobytes()).hexdigest()
    for fields in samples
    for level in fields.values()
    for name, values in level.items()
}
"""


def test_bits_do_not_depend_on_the_number_of_threads():
    here = {}
    exec(BITS, here)
    one = os.environ.get("OMP_NUM_THREADS") == "1" or os.cpu_count() == 1
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2" if one else "1")
    there = subprocess.run(
        [sys.executable, "-c", f"{BITS}print(bits)"],
        env=os.environ | threads,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert len(here["bits"]) == 10
    assert there.stdout.strip() == str(here["bits"])
