"""``python -m mano_op.cli``, as torchrun starts it."""

import sys

from mano_op.cli import main

sys.exit(main())
