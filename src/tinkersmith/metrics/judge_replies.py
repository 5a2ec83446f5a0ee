"""The replies of a judge in a file, as they come, so that none is asked for twice."""

import hashlib
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, reason_of, unreadable


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What came back for one request."""

    text: str
    cut: bool  # at the token limit
    prompt_tokens: int | None  # None: the server does not say
    reply_tokens: int | None


class JudgeReplies:
    """Replies by the digest of their request. Threads share it."""

    def __init__(self, path: Path | None = None, *, goes_on: bool = False) -> None:
        """A file of replies; None keeps them in memory alone.

        Args:
            goes_on: whether the replies that are there already count.

        Raises:
            UserError: the file cannot be read.
        """
        self._path, self._lock = path, threading.Lock()
        self._known: dict[str, JudgeReply] = {}
        if path is not None and goes_on:
            self._known = _stored_replies(path)
        elif path is not None:
            self.remove()  # what an evaluation before this one left

    def __len__(self) -> int:
        return len(self._known)

    def get(self, request: str) -> JudgeReply | None:
        return self._known.get(request)

    def add(self, request: str, reply: JudgeReply) -> None:
        """Keep a reply; the line is with the operating system when this returns.

        Raises:
            UserError: the file cannot be written.
        """
        line = json.dumps({"request": request, **asdict(reply)}) + "\n"
        with self._lock:
            self._known[request] = reply
            if self._path is None:
                return
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                raise UserError(
                    f"{self._path} cannot be written: {reason_of(error)}. Check the disk."
                ) from None

    def remove(self) -> None:
        """Remove the file, when the results are written."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self._path} cannot be removed: {reason_of(error)}. Remove it."
                ) from None


def request_digest(model: str, *texts: str) -> str:
    """A digest of what a judge is asked."""
    content = "\0".join((model, *texts)).encode("utf-8", "backslashreplace")
    return hashlib.sha256(content).hexdigest()[:32]


def _stored_replies(path: Path) -> dict[str, JudgeReply]:
    """The whole lines of a file; a torn or foreign line is asked for again."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreadable(path, error) from None
    replies: dict[str, JudgeReply] = {}
    for line in data.splitlines():
        try:
            content = cast("dict[str, Any]", json.loads(line))
            request = content.pop("request")
            reply = JudgeReply(**content)
        except (ValueError, TypeError, AttributeError, KeyError):
            continue
        if isinstance(request, str) and isinstance(cast(object, reply.text), str):
            replies[request] = reply
    if data and not data.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")  # so that the next line stands alone
    return replies
