"""What workers sent, on the driver's disk: every part whole, once, with a receipt."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dpar_export._errors import InputError, IntegrityError
from dpar_export._worker import Part, file_digest, sync

RECEIPT = "receipt.json"
#: What shows that a folder of parts is this module's: nothing else is removed.
MARK = "parts-of-dpar-export"
log = logging.getLogger("dpar_export")


def discard(folder: Path) -> None:
    """Removes the parts of an evaluation that is done; a folder of somebody else stays."""
    if (folder / MARK).is_file():
        shutil.rmtree(folder, ignore_errors=True)


class Parts:
    """The folder of the parts of one evaluation, held for this process."""

    def __init__(self, folder: Path, key: str, count: int) -> None:
        self._folder, self._key, self._count = folder, key, count
        self._receipts: dict[int, dict[str, Any]] = {}
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Parts:
        self._folder.mkdir(exist_ok=True)
        if not (self._folder / MARK).is_file():
            if any(self._folder.iterdir()):
                raise InputError(
                    f"{self._folder} is where parts are kept until they are joined, and it holds something else",
                    "move it away, or choose another --output",
                )
            (self._folder / MARK).touch()
        self._lock = (self._folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(f"{self._folder} is in use by another driver", "wait for it, or end it") from None
        for rest in self._folder.glob(".*.part"):
            shutil.rmtree(rest, ignore_errors=True)
        for number in range(1, self._count + 1):
            if self.folder(number).exists():
                self._read(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def folder(self, number: int) -> Path:
        """Of a part."""
        return self._folder / str(number)

    def missing(self) -> list[int]:
        """The parts that are still to be done."""
        return [n for n in range(1, self._count + 1) if n not in self._receipts]

    def images(self) -> int:
        """Images of the parts that are there."""
        return sum(receipt["images"] for receipt in self._receipts.values())

    def _read(self, number: int) -> None:
        """Believes a part of an earlier run where it is what its receipt says; else it is done again."""
        folder = self.folder(number)
        try:
            receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
            good = receipt["key"] == self._key and receipt["shards"] == self._count and all(
                file_digest(folder / "samples" / name) == found for name, found in receipt["sha256"].items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if good:
            self._receipts[number] = receipt
        else:
            log.warning("%s is not what its receipt says: part %d is done again", folder, number)
            shutil.rmtree(folder)

    def add(self, part: Part) -> bool:
        """Stores a part durably; false where it was there: a part that was done twice counts once.

        Raises:
            IntegrityError: It is not what the worker sent.
        """
        for name, data in part.files.items():
            if "/" in name or hashlib.sha256(data).hexdigest() != part.sha256.get(name):
                raise IntegrityError(f"{name} of part {part.number} changed on its way")
        known = self._receipts.get(part.number)
        if known is not None:
            if known["sha256"] != dict(part.sha256):
                log.warning(
                    "part %d was done twice, on %s and on %s, with other features: their processors round differently; the first counts",
                    part.number, known["worker"]["host"], part.worker["host"],
                )  # fmt: skip
            return False
        receipt = {
            "part": part.number, "shards": self._count, "key": self._key, "images": part.images,
            "sha256": dict(part.sha256), "memory": part.memory, "worker": dict(part.worker),
        }  # fmt: skip
        folder = self._folder / f".{part.number}.part"
        samples = folder / "samples"
        shutil.rmtree(folder, ignore_errors=True)
        samples.mkdir(parents=True)
        for name, data in part.files.items():
            (samples / name).write_bytes(data)
        (folder / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
        for written in [*samples.iterdir(), samples, folder / RECEIPT, folder]:
            sync(written)
        folder.rename(self.folder(part.number))
        sync(self._folder)
        self._receipts[part.number] = receipt
        return True
