"""One thread a worker, and property tests that are quick and draw the same examples every time."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("mano_op", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("mano_op")
