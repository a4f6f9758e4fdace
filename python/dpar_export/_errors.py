"""Exceptions: every failure of the program has its kind, its next step and the exit code of the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class DparError(Exception):
    """What could not be done.

    Attributes:
        kind: One word for what it means, the same for every error of a class.
        hint: The next step, where there is one.
        details: Further lines, such as names that do not match.
        exit_code: What the command line ends with.
    """

    kind: ClassVar[str] = "error"
    #: What the command line ends with, where the failure has no code of its own.
    code: ClassVar[int] = 2

    def __init__(
        self, message: str, hint: str | None = None, details: Iterable[str] = (), exit_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = tuple(details)
        self.exit_code = self.code if exit_code is None else exit_code

    def __str__(self) -> str:
        lines = [super().__str__(), *(f"  {line}" for line in self.details)]
        if self.hint is not None:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Workers of process pools hand exceptions over.
        return (type(self), (self.args[0], self.hint, self.details, self.exit_code))


class InputError(DparError, ValueError):
    """An input, a setting or a place that cannot be used (exit code 2)."""

    kind = "input"


class BusyError(DparError):
    """A scheduler has too much to do: the same may be asked for again later (exit code 2)."""

    kind = "busy"


class RunError(DparError, RuntimeError):
    """A graph was run and failed, or gave what cannot be (exit code 2; 1 where a comparison was asked for)."""

    kind = "run"


class UnavailableError(DparError, RuntimeError):
    """This machine, or this build, lacks an engine, a library or a device (exit code 3)."""

    kind = "unavailable"
    code = 3


class IntegrityError(DparError):
    """A file is not the one that was recorded (exit code 5)."""

    kind = "integrity"
    code = 5


class MismatchError(DparError, AssertionError):
    """A comparison found a mismatch, or a gate failed (exit code 1)."""

    kind = "mismatch"
    code = 1


class InconclusiveError(DparError):
    """The statistics decide nothing: more images or seeds are needed (exit code 4)."""

    kind = "inconclusive"
    code = 4


class InternalError(DparError, RuntimeError):
    """A defect of this package (exit code 101)."""

    kind = "internal"
    code = 101
