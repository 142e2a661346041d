"""The exceptions that users cause, not bugs, and which of the system's errors are permanent."""

import errno

# file systems in buckets raise these classes without an errno
PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
PERMANENT_ERRNO = {
    *(errno.ENAMETOOLONG, errno.EROFS, errno.ENXIO, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
}


class UserError(Exception):
    """Bad input. The command line prints it as one line on stderr and exits with code 2."""


class TransientError(UserError):
    """A failure that another try may mend, such as a busy bucket.

    The command line exits with code 1, so that a launcher starts the command again.
    """


def is_permanent(error: OSError) -> bool:
    """Returns True if the operation will fail until somebody changes something, for example a missing file.

    Returns False if another try may succeed, for example on a file system that is not mounted at the moment.
    """
    return isinstance(error, PERMANENT) or error.errno in PERMANENT_ERRNO


def as_user_error(error: OSError, message: str) -> UserError:
    """Returns the exception to raise: UserError if `error` is permanent, otherwise TransientError."""
    return (UserError if is_permanent(error) else TransientError)(message)


def line_of(error: object) -> str:
    """Returns what an error or a message says, in one line; the system's errors without number and path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
