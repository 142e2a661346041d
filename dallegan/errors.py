"""The one exception that a user, not a bug, causes."""


class UserError(Exception):
    """Bad input. The entry points print it as one line on stderr and exit with 2."""
