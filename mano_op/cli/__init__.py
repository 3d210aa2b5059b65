"""The command line, ``mano-op``: it parses, calls, and prints; what it calls does the work.

Commands are functions, whose signatures and docstrings are options and help. Their modules, and what these
import at their top, know neither torch nor xarray: help and mistakes are answered at once.
"""

from __future__ import annotations

import os
import re
import sys
from ast import literal_eval
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from mano_op import __version__
from mano_op.cli.config import configure, words_of
from mano_op.cli.evaluate import app as evaluate
from mano_op.cli.evaluate import demo, export, predict
from mano_op.cli.stores import app as store
from mano_op.cli.stores import generate
from mano_op.errors import InputError

# What is left behind by a command that is interrupted, by how its words begin.
_INTERRUPTED = {
    "demo": "Start again with --overwrite.",
    "generate": "What is solved is kept: go on with --resume and the same options.",
    "store coarsen": "What is coarsened is kept: go on with --resume and the same options.",
    "store import": "What is written is kept: go on with --resume and the same options.",
    "train": "The last checkpoint is kept, if there is one: go on with --resume and the same options.",
    "": "What was there before is as it was.",
}


def _default(value: Any) -> str | None:
    return None if value is None or value is False or value == () else str(value)


app = App(
    name="mano-op",
    help="Multipole attention neural operators: fields, training, evaluation at other resolutions.",
    version=f"mano_op {__version__}",
    help_format="plaintext",
    default_parameter=Parameter(negative=(), consume_multiple=(1, None), show_default=_default),
    config=configure,
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for command in (generate, store, evaluate, predict, export, demo):
    app.command(command)
app.command("mano_op.cli.train:app", name="train", help="Train a model on fields, or a classifier on images.")
app.register_install_completion_command()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code.

    That is 0 if it did what it was asked, 1 if a store that was to be checked is not as it should be, 2 if
    the words, the input or a file cannot be used, 130 if it was interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code: int | None = app(words)
        sys.stdout.flush()
    except BrokenPipeError:  # `mano-op store info STORE | head`: nobody reads on, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CycloptsError as error:
        text, command = " ".join(str(error).split()), " ".join(["mano-op", *(error.command_chain or ())])
        return _failed(f"{text.rstrip('.')}; see `{command} --help`", 2)
    except InputError as error:
        # The library names its arguments; who typed a command knows them as flags.
        return _failed(_as_flags(str(error), words), 2)
    except OSError as error:  # no permission, no room: what is said needs no traceback
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}; check the path, its permissions and the disk", 2)
    except KeyboardInterrupt:
        kept = next(text for start, text in _INTERRUPTED.items() if " ".join(words).startswith(start))
        return _failed(f"interrupted. {kept}", 130)
    return code or 0


# An argument of the library with its value, as messages have it, which is no entry of a file.
_ARGUMENT = re.compile(
    r"(?<![\w.(\[{])(?<!option )(?<!toml: )(?<!yaml: )(?<!json: )(\w+)="
    r"(\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|'[^']*'|(?>[\w.+-]*\w)(?!\())"
)
# Arguments whose flags have another name.
_RENAMED = {"hold_out": "validate", "boundary_conditions": "boundary", "options": "option"}
_RENAMED |= {"resolutions": "resolution", "test": "test_part", "validation": "validation_part"}


def _as_flags(message: str, words: Sequence[str]) -> str:
    """Return a message with the arguments that the command has as its flags: ``--patience 3``."""
    _, apps, _ = app.parse_commands(list(words))
    flags = {
        name: argument for argument in apps[-1].assemble_argument_collection() for name in argument.names
    }

    def flag(argument: re.Match[str]) -> str:
        name, text = f"--{_RENAMED.get(argument[1], argument[1])}".replace("_", "-"), argument[2]
        if name not in flags:
            return argument[0]
        try:
            value = literal_eval(text)
        except (ValueError, SyntaxError, TypeError):  # a placeholder: time_steps=(steps_in, steps_out)
            value = re.findall(r"[\w.+-]+", text.upper() if text.startswith("(") else text)
        if value is True:
            return name
        n_tokens = flags[name].parameter.n_tokens
        typed = words_of(value, n_tokens == 1 or (isinstance(value, tuple) and n_tokens == -1))
        return " ".join([name, *map(str, typed if isinstance(typed, list) else [typed])])

    return _ARGUMENT.sub(flag, message)


def _failed(message: str, code: int) -> int:
    print(f"\nmano-op: {message}" if sys.stderr.isatty() else f"mano-op: {message}", file=sys.stderr)
    return code
