"""Errors that a user can mend. Each message is one line that says what to change."""


class ProbeError(Exception):
    """A mistake outside this library: the command line prints the message alone and exits with 1."""


class UsageError(ProbeError):
    """An option or argument that cannot be meant: the command line exits with 2."""
