"""Problems with random inputs and their solvers on any grid, and data sets made from them."""

from mano_op.problems.burgers import Burgers as Burgers
from mano_op.problems.darcy import Darcy as Darcy
from mano_op.problems.darcy import solve_darcy as solve_darcy
from mano_op.problems.generate import generate_darcy as generate_darcy
from mano_op.problems.generate import generate_fields as generate_fields
from mano_op.problems.generate import split_seed as split_seed
from mano_op.problems.navier_stokes import NavierStokes as NavierStokes
from mano_op.problems.poisson import Poisson as Poisson
from mano_op.problems.random_field import GaussianRandomField as GaussianRandomField
from mano_op.problems.reaction_diffusion import FitzHughNagumo as FitzHughNagumo
from mano_op.problems.solver_grid import solver_grids as solver_grids
