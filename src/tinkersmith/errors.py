"""Errors whose text is meant for the user: one whole sentence, shown without a traceback."""

import errno
from pathlib import Path


class UserError(Exception):
    """Something that the user can fix. The text says what is wrong, where, and what to do next."""


def reason_of(error: OSError) -> str:
    """The reason of an operating system's error, without the file's name."""
    return error.strerror or str(error) or type(error).__name__


def unreadable(path: Path | str, error: OSError) -> UserError:
    """The sentence about a file that the operating system does not let us read."""
    reason = reason_of(error)
    if isinstance(error, PermissionError):
        advice = "Check its permissions."
    elif isinstance(error, FileNotFoundError):
        advice = "Put it there, or name another file."
    elif error.errno == errno.ELOOP:
        reason, advice = "its links lead in a circle", "Replace the link by the file itself."
    elif "pipe" in reason:
        advice = "Write its content to a file, and name that."
    elif error.errno == errno.EFBIG:
        advice = "Check that it is the right file."
    elif error.errno in (errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR):
        advice = "Name a regular file."
    else:
        advice = "Check the disk that it is on, or name another file."
    return UserError(f"{path} cannot be read: {reason}. {advice}")


def one_line(text: str, longest: int = 80) -> str:
    """The beginning of a text from a file, to quote it: what breaks a line is escaped."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:longest])
    return shown if len(text) <= longest else f"{shown}..."
