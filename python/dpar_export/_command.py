"""Commands of the command line, called from Python: one parser, one set of defaults, one set of checks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from dpar_export import _native
from dpar_export._errors import InconclusiveError, InputError, IntegrityError, MismatchError, UnavailableError

#: A path as Python has it.
Path = str | os.PathLike[str]


class Document(dict[str, Any]):
    """What a command found, as its `--json` document.

    Attributes:
        exit_code: What the command line ends with: 0 pass, 1 a mismatch or a failed gate, 2 where what was to be compared was
            not there, 3 an engine that is not available, 4 statistics that decide nothing, 5 damage.
    """

    def __init__(self, document: Mapping[str, Any], exit_code: int) -> None:
        super().__init__(document)
        self.exit_code = exit_code

    @property
    def passed(self) -> bool:
        """Whether everything that was asked for was done, and every check passed."""
        return self.exit_code == 0

    def raise_for_verdict(self) -> None:
        """Raises what a command line would end with.

        Raises:
            MismatchError: A check failed.
            InconclusiveError: The statistics decide nothing.
            InputError: What was to be compared was not there.
            UnavailableError: No engine ran that could have been compared.
            IntegrityError: A file is damaged.
        """
        if self.exit_code != 0:
            self._raise()

    def _raise(self) -> NoReturn:
        verdict = self.get("verdict", "not passed")
        checks = self.get("checks", ())
        failed = [
            f"{check['name']}: {check.get('detail', '')}"
            for check in checks
            if isinstance(check, dict) and check.get("status") not in ("pass", "not_run", "skipped")
        ]
        message = f"verdict: {verdict}"
        match self.exit_code:
            case 1:
                raise MismatchError(message, details=failed, exit_code=1)
            case 3:
                raise UnavailableError(message, "`command(\"doctor\")` says which engines can run here", failed, 3)
            case 4:
                raise InconclusiveError(message, "compare more images, or more seeds", failed, 4)
            case 5:
                raise IntegrityError(message, details=failed, exit_code=5)
            case code:
                raise InputError(message, details=failed, exit_code=code)


def words(options: Mapping[str, object]) -> list[str]:
    """Options as the command line has them: `cfg_scale=2.0` is `--cfg-scale=2.0`, True a flag, a list the option again and again."""
    out: list[str] = []
    for name, value in options.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            out.append(flag)
        elif isinstance(value, str | os.PathLike):
            out.append(f"{flag}={os.fspath(value)}")
        elif isinstance(value, Iterable):
            out.extend(f"{flag}={os.fspath(v) if isinstance(v, os.PathLike) else v}" for v in value)
        else:
            out.append(f"{flag}={value}")
    return out


def call(arguments: Iterable[Path]) -> Document:
    """Carries a command out and returns its document."""
    exit_code, text = _native.call([os.fspath(a) for a in arguments])
    document = json.loads(text)
    return Document(document if isinstance(document, dict) else {"text": document}, exit_code)


def command(name: str, *operands: Path, **options: object) -> Document:
    """Carries out a command of the command line in this process: `command("parity", bundle, engines=["tract", "ort"])`.

    Nothing is printed. `bench`, and the option `--max-memory`, need a process of their own and are refused.

    Args:
        name: The command, such as `parity`, `inspect`, `doctor`, `reproduce`, `attest`, `synth`.
        operands: What has no option before it: a bundle, a checkpoint, a file.
        options: The options: `cfg_scale=2.0` is `--cfg-scale 2.0`, True is a flag, a list gives the
            option for each of its values.

    Returns:
        The command's `--json` document with its exit code.

    Raises:
        DparError: What the command line would have said; one class for each kind.
        KeyboardInterrupt: Ctrl-C, between two steps of the work.
    """
    if name == "evaluate" and options.get("on") is not None:
        raise InputError("this process would only say what there is to do", "call `dpar_export.cluster.evaluate`")
    return call([name, *words(options), "--", *operands] if operands else [name, *words(options)])
