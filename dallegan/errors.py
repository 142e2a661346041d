"""The one exception that a user, not a bug, causes; and which of the system's errors stay."""

import errno

STAY = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)  # those of buckets have no number
STAYS = {errno.ENAMETOOLONG, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


class UserError(Exception):
    """Bad input. The entry points print it as one line on stderr and exit with 2."""


class TransientError(UserError):
    """What another try may mend, such as a bucket that is busy: the command line exits 1 on it, so that a launcher starts again."""


def is_permanent(error: OSError) -> bool:
    """Whether the system denies it until somebody changes something; another try may mend the rest, such as a file system that is away."""
    return isinstance(error, STAY) or error.errno in STAYS


def as_user_error(error: OSError, message: str) -> UserError:
    """The message, to be raised for the error: as one that another try may mend, unless the error stays."""
    return (UserError if is_permanent(error) else TransientError)(message)
