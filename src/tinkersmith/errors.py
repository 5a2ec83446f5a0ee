"""Errors whose text is meant for the user: one whole sentence, shown without a traceback."""

import errno
import re
import socket
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Something that the user can fix. The text says what is wrong, where, and what to do next."""


def reason_of(error: OSError) -> str:
    """The reason of an operating system's error, without the file's name."""
    return error.strerror or str(error) or type(error).__name__


_NETWORK = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.ETIMEDOUT,
)


def is_of_network(error: OSError) -> bool:
    """Whether an error is one of the network, which libraries raise as one of a file.

    An error of a file has a number of the operating system. Those of the network have other
    numbers, or none: of http libraries, and of those that download.
    """
    if isinstance(error, (socket.gaierror, ConnectionError, TimeoutError)):
        return not isinstance(error, BrokenPipeError)
    return error.errno in _NETWORK or (error.errno is None and error.filename is None)


def network_reason(error: BaseException) -> str:
    """Why a host was not reached, in a few words, without an end."""
    reason = getattr(error, "reason", error)  # urllib wraps what it met
    if isinstance(reason, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(reason, TimeoutError):
        return "it took too long"
    if isinstance(reason, OSError) and reason.errno in _NETWORK:
        return (reason.strerror or type(reason).__name__).lower()
    return one_line(" ".join(str(reason).split()), 120).rstrip(".") or type(reason).__name__


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and what led to it."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or link.__context__


def error_kinds(error: BaseException) -> set[str]:
    """The names of the classes of an error and of what led to it: libraries are not imported."""
    return {kind.__name__ for link in error_chain(error) for kind in type(link).__mro__}


def without_password(address: str) -> str:
    """A URL without the name and password that it may have, to be shown."""
    return re.sub(r"//[^/?#]*@", "//", address, count=1)


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
