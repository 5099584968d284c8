"""Which errors can a user mend? A message of these classes is one line: what is wrong, where, and what to do.

The command line prints this message alone. Any other exception is a fault of this library and shows its traceback.
"""


class ProbeError(Exception):
    """Something outside this library failed (a file, a model, the network); the command line exits with 1."""


class UsageError(ProbeError):
    """The user gave an option or argument that cannot be meant; the command line exits with 2."""
