"""The one exception that says "what you gave cannot be used"."""


class InputError(ValueError):
    """Raised for input that cannot be used, before any work starts.

    The message names the value that was given, what is expected, and what to do about it. It is a
    `ValueError`, so code that catches those keeps working; the command line prints it without a
    traceback, which it keeps for everything else.

    Examples
    --------
    >>> raise InputError("got window=0, expected a positive whole number: pass window=4, say")
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: got window=0, expected a positive whole number: pass window=4, say
    """
