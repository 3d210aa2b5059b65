"""What goes wrong with operators on grids elsewhere, and the test that shows that it does not here."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import on_grid
from neuralop.layers.resample import resample as neuraloperators_resample

from mano_op import MANO, Grid
from mano_op.resample import resample

TESTS = Path(__file__).parent
# What can go wrong, and the test of that, in this file if it names no other.
TRAPS = """
neuraloperator's Trainer passes the whole sample
      mano::test_other_entries_of_a_sample_are_not_used
  and sums over batches of unlike sizes
      train::test_the_error_is_the_mean_over_samples_and_channels
  and draws no order anew in epochs
      sampler::test_epochs_differ_and_follow_from_the_seed
  and steps through time under another name than it says
      loaders::test_the_trainers_autoregression_feeds_outputs_back
  and scales no gradient in half precision
      test_half_precision_needs_no_scaling
  and runs the last epoch again when it goes on
      checkpoint::test_interrupted_and_not_are_one
  and tells nothing of a last epoch that it was not to evaluate in
      train::test_any_number_of_epochs
Its processor changes the caller's sample
      processor::test_the_callers_sample_stays_as_it_was
  and cannot be chained
      processor::test_modes_and_devices_can_be_chained
  and takes no step of a rollout
      loaders::test_the_trainers_autoregression_feeds_outputs_back
  and may have a statistic for every pixel
      processor::test_the_formula
Its losses wrap axes that end
      objective::test_the_loss_of_an_error_is_the_same_on_finer_grids
  and take lengths for spacings
      objective::test_losses_of_batches_have_their_closed_form
  and fail on few points
      objective::test_what_cannot_be_had_is_refused
  and add up channels
      objective::test_the_loss_is_the_relative_norm_summed_over_samples_and_channels
  of equations have a grid of their own
      physics::test_the_residual_of_a_front_falls_with_the_square_of_the_spacing
  of equations weigh less in larger batches
      physics::test_an_equation_is_a_mean_over_samples_where_data_are_a_sum
Its state dicts have an entry that is no tensor
      model::test_state_dict_has_the_options_of_the_root_alone
  which is taken out of the caller's
      model::test_loading_a_state_dict_leaves_it_as_it_is
  so models cannot be parts or averages
      neuralop::test_averaged_model
Its checkpoints run code
      model::test_code_in_a_checkpoint_is_not_run
  and cannot be read where options were given by position
      neuralop::test_checkpoint_round_trip
  and are of any version
      model::test_another_version_is_refused
  and compiled models name parameters otherwise
      test_a_compiled_models_checkpoint_is_that_of_the_model
Its registry takes any option
      neuralop::test_get_model
Its coordinates leave out an end
      mano::test_coordinates
Its resampling moves points
      test_resampling_keeps_points_where_they_are
Importing it changes what warnings do
      test_it_is_imported_without_extras_and_without_a_warning
Data parallel training wants all gradients
      neuralop::test_data_parallel_training_at_sizes_with_fewer_levels
Ranks wait for another's finer grid
      sampler::test_ranks_share_the_samples_and_take_the_same_resolution_in_every_step
Readers of chunks read each many times
      dataset::test_a_batch_reads_each_variable_once
Forked readers hang
      loaders::test_a_forked_process_reads_from_memory_only
Padding is attended to
      window::test_what_stands_in_the_padding_never_matters
Windows shrink as grids are refined
      anchored::test_outputs_converge_at_second_order_as_the_grid_is_refined
Axes of a grid are taken for each other
      every_grid::test_the_order_of_the_axes_is_a_matter_of_names
Complex numbers and transforms cannot be exported
      export::test_an_onnx_file_is_for_all_sizes
A compiler makes a graph for every size
      export::test_it_is_compiled_once_for_all_sizes
Samples of a batch meet
      mano::test_samples_do_not_meet
Coarsening by strides aliases
      resample::test_coarsening_by_spectral_or_mean_filters_what_interpolation_aliases
"""


TESTED = sorted({line.strip() for line in TRAPS.splitlines() if line.startswith("      ")})


@pytest.mark.parametrize("test", TESTED)
def test_the_test_of_a_trap_is_there(test):
    file, _, name = test.rpartition("::")
    tree = ast.parse((TESTS / f"test_{file or 'traps'}.py").read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def small(**options):
    torch.manual_seed(0)
    return MANO(1, 1, hidden_channels=8, n_layers=2, n_heads=2, reference_shape=(8, 8), **options)


def test_half_precision_needs_no_scaling():
    """Outputs and gradients in float16 are those in float32, to its eleven bits; none vanishes."""
    model, x = small(), 10 * torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = {}
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            out = model(x)
        out.float().square().mean().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found[enabled] = out.detach().float(), gradients
    for exact, half in zip(found[False], found[True], strict=True):
        assert half.isfinite().all()
        assert (half - exact).norm() < 0.01 * exact.norm()


def test_a_compiled_models_checkpoint_is_that_of_the_model(tmp_path):
    """Its state dict has other names; what it saves has not."""
    model, x = small(), torch.randn(1, 1, 8, 8)
    compiled = torch.compile(model, backend="eager")
    assert all(name.startswith("_orig_mod.") for name, _ in compiled.named_parameters())
    compiled.save_checkpoint(tmp_path, "model")
    assert torch.equal(MANO.from_checkpoint(tmp_path, "model")(x), model(x))


def test_resampling_keeps_points_where_they_are():
    """A wave around a circle, from 16 points to 32: neuraloperator's is off by a tenth of it and more."""
    coarse, fine = (Grid.uniform((n, n), periodic=True) for n in (16, 32))
    waves = [
        on_grid(lambda y, x: np.sin(2 * np.pi * (x + 2 * y)), grid)[None, None] for grid in (coarse, fine)
    ]
    torch.testing.assert_close(
        resample(waves[0], coarse, fine, method="spectral"), waves[1], rtol=0, atol=1e-12
    )
    assert (neuraloperators_resample(waves[0], 2, [-2, -1]) - waves[1]).abs().max() > 0.1


WITHOUT = """
import sys
extras = ["torch_harmonics", "the_well", "lightning", "xbatcher", "h5netcdf", "tensorboard"]
for name in [*extras, "huggingface_hub"]:
    sys.modules[name] = None
import mano_op, mano_op.train, mano_op.transfer, mano_op.data.loaders, mano_op.data.importers
import mano_op.data.well
from neuralop.models.base_model import available_models
assert {"mano", "mano_published"} <= set(available_models())
"""


def test_it_is_imported_without_extras_and_without_a_warning():
    done = subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
