"""A metric of the user's own: METRICS = ["file.py:function"]."""

import inspect
import math
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, one_line, unreadable
from tinkersmith.files import read_regular

ARGUMENTS = ("expected", "produced", "prompt", "fields")
_LARGEST_FILE = 10_000_000  # bytes


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """A function of the user's, and the arguments that it takes."""

    file: str
    function: str
    call: Callable[..., Any]
    arguments: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.file}:{self.function}"

    def scores(
        self, expected: str, produced: str, prompt: str, fields: Mapping[str, Any], sample: str
    ) -> dict[str, float]:
        """What the function says of one answer; {} where it returns None: no score.

        Args:
            sample: its place, for an error.

        Raises:
            UserError: the function fails, or returns something else than numbers.
        """
        given = {
            "expected": expected,
            "produced": produced,
            "prompt": prompt,
            "fields": dict(fields),
        }
        try:
            value = self.call(**{name: given[name] for name in self.arguments})
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a program of the user: it can end in any way
            raise UserError(
                f"METRICS: {self.where} failed for {sample}: {_kind_and_text(error)}"
                f"{_line_of(error, self.file)}. Correct the function."
            ) from None
        if value is None:
            return {}
        if isinstance(value, Mapping):
            content = cast("Mapping[object, object]", value)
            return {
                f"{self.function}_{self._key(key, sample)}": self._number(item, sample, str(key))
                for key, item in content.items()
                if item is not None
            }
        return {self.function: self._number(value, sample)}

    def _key(self, key: object, sample: str) -> str:
        if isinstance(key, str) and key.strip() and key.isprintable() and len(key) <= 60:
            return key
        raise UserError(
            f"METRICS: {self.where} returned a dict for {sample} with the key "
            f"{_shown(key)}; a key is a short name of a score."
        )

    def _number(self, value: object, sample: str, key: str = "") -> float:
        try:
            if isinstance(value, Real) or hasattr(value, "item"):  # also a scalar of NumPy
                number = float(cast("Any", value))
                if math.isfinite(number):
                    return number
        except Exception:  # an array, or a number too large: the sentence below
            pass
        of_key = f' as "{one_line(key)}"' if key else ""
        raise UserError(
            f"METRICS: {self.where} returned {_shown(value)}{of_key} for {sample}; it must return "
            "a finite number, True or False, a dict of such, or None for no score."
        )


def own_metric(file: str, function: str) -> OwnMetric:
    """Load a function of the user's.

    Raises:
        UserError: there is no such file or function, it fails to load, or takes other arguments.
    """
    where = f"{file}:{function}"
    source = _source_of(file)
    try:
        names = _run(file, source)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # see above
        raise _not_run(file, error) from None
    call = names.get(function)
    if not callable(call):
        own = [
            name
            for name, value in names.items()
            if inspect.isfunction(value) and value.__code__.co_filename == file
        ]
        has = f"it has {', '.join(own[:8])}" if own else "it has no function"
        raise UserError(f"METRICS: {file} has no function {function}; {has}. Correct the name.")
    if inspect.iscoroutinefunction(call):
        raise UserError(f"METRICS: {where} is an async function; write a plain one.")
    return OwnMetric(file, function, call, _arguments(call, where))


def check_metric_file(file: str) -> None:
    """Read a file of the user's as Python, without running it.

    Raises:
        UserError: there is no such file, or it is no Python.
    """
    source = _source_of(file)
    try:
        compile(source, file, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # MemoryError: nested
        raise _not_run(file, error) from None


def _source_of(file: str) -> bytes:
    try:
        return read_regular(Path(file), _LARGEST_FILE)
    except OSError as error:
        raise UserError(f"METRICS: {unreadable(file, error)}") from None


def _not_run(file: str, error: BaseException) -> UserError:
    return UserError(
        f"METRICS: {file} cannot be run: {_kind_and_text(error)}{_line_of(error, file)}. "
        "Correct it."
    )


def _run(file: str, source: bytes) -> dict[str, Any]:
    """Run a file as a module, without leaving bytecode beside it."""
    folder = str(Path(file).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # it may import its neighbours, also later on
    # Dataclasses look up the module of a class by its name.
    module = types.ModuleType(f"tinkersmith_metrics_of_{Path(file).stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module
    exec(compile(source, file, "exec"), module.__dict__)
    return vars(module)


def _arguments(call: Callable[..., Any], where: str) -> tuple[str, ...]:
    """The arguments that a function takes of those that we give.

    Raises:
        UserError: it needs another one, or takes none of ours.
    """
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        named = ARGUMENTS
    else:
        by_name = [
            p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        named = tuple(name for name in ARGUMENTS if name in by_name)
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and (p.name not in ARGUMENTS or p.kind is p.POSITIONAL_ONLY)
    ]
    if needed or not named:
        wrong = f"needs {needed[0]}" if needed else "takes none of them"
        raise UserError(
            f"METRICS: {where} {wrong}; a metric is called with those that it names of "
            f"{', '.join(ARGUMENTS)}, such as def {where.rpartition(':')[2]}(expected, produced)."
        )
    return named


def _line_of(error: BaseException, file: str) -> str:
    if isinstance(error, SyntaxError):
        return ""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file and frame.lineno
    ]
    return f" ({file}, line {lines[-1]})" if lines else ""


def _kind_and_text(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:200]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shown(value: object) -> str:
    try:
        return one_line(repr(value), 60)
    except Exception:
        return f"a value of the type {type(value).__name__}"
