"""What a machine of a cluster does: a process that evaluates parts, and the files that it needs. Nothing here knows Ray."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from dpar_export import _native
from dpar_export._errors import DparError, InputError, IntegrityError, RunError, UnavailableError

#: Bytes that are hashed at a time.
BLOCK = 1 << 20
#: Failures that no other try changes, as with `evaluate --emit k8s`: bad input, something that is not there, damage.
FINAL: dict[int, type[DparError]] = {2: InputError, 3: UnavailableError, 5: IntegrityError}


@dataclass(frozen=True)
class Input:
    """A bundle or an extractor.

    Attributes:
        option: Its option on the command line.
        path: Where it is, absolute.
        sha256: What `digest` says of it.
    """

    option: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Task:
    """An evaluation as its workers see it.

    Attributes:
        words: The command line without what differs between machines.
        folder: What relative paths in it are relative to.
        inputs: What is opened.
        copied: Whether inputs are sent to every machine, although they may be there.
        shards: Number of parts.
        threads: Threads of a worker.
        key: SHA-256 of everything that features depend on, as the program says it.
        version: Of this package.
    """

    words: tuple[str, ...]
    folder: str
    inputs: tuple[Input, ...]
    copied: bool
    shards: int
    threads: int
    key: str
    version: str = _native.__version__


@dataclass(frozen=True)
class Part:
    """A part as it was evaluated.

    Attributes:
        number: Which, from 1.
        images: Its images.
        files: What is to be stored, by name.
        sha256: Of each file.
        memory: Most memory that the worker's process has held so far, in bytes.
        worker: Who did it: host, pid, and the pid of the process that ran the network.
    """

    number: int
    images: int
    files: Mapping[str, bytes]
    sha256: Mapping[str, str]
    memory: int
    worker: Mapping[str, Any]


class Lost(Exception):
    """A worker's process ended, and another try may go well."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file; of a bundle its manifest's, which lists those of all its files."""
    return file_digest(path / "manifest.json" if path.is_dir() else path)


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of an input, with their names in it."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield file.relative_to(path).as_posix(), file
    else:
        yield path.name, path


def sync(path: Path) -> None:
    """Brings what was written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def kept_inputs() -> Path:
    """The folder of this user, and of nobody else, for what was sent to this machine."""
    folder = Path(tempfile.gettempdir()) / f"dpar-export-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if folder.is_symlink() or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise InputError(f"{folder} is not a folder of this user alone", "remove it, or set TMPDIR")
    return folder


@contextlib.contextmanager
def _alone() -> Iterator[Path]:
    """The folder of what was sent, with no other worker of this machine that sweeps in it."""
    place = kept_inputs()
    with (place / "lock").open("wb") as all_of_them:
        fcntl.flock(all_of_them, fcntl.LOCK_EX)
        yield place


def _check(place: Path, wanted: Input) -> None:
    """Holds every file of an input against what was to be sent.

    Raises:
        IntegrityError: One is another, or missing.
    """
    found = digest(place)
    if found != wanted.sha256:
        raise IntegrityError(f"{wanted.path} came with the SHA-256 {found}, and was sent with {wanted.sha256}")
    if place.is_dir():
        for file in json.loads((place / "manifest.json").read_text(encoding="utf-8"))["files"]:
            path = place / file["path"]
            if not path.is_file() or file_digest(path) != file["sha256"]:
                raise IntegrityError(f"{file['path']} of {wanted.path} changed on its way, or before")


def _claim() -> tuple[Path, int]:
    """A folder that is a worker's while its lock, a descriptor, is open; those of workers that were lost go."""
    # No other worker sweeps between the making of a folder and its lock.
    with _alone() as place:
        for rest in place.glob("worker-*"):
            try:
                with (rest / "lock").open("rb") as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:
                # Its worker was lost before it had one.
                pass
            shutil.rmtree(rest, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="worker-", dir=place))
        lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


class Worker:
    """Evaluates parts with a process that loads engine and extractor once. A plain class, of which Ray makes actors."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._places: dict[str, Path] = {}
        self._sent: dict[str, Path] = {}
        self._process: subprocess.Popen[str] | None = None
        self._folder, self._lock = _claim()
        self._talk: IO[str] | None = None

    def missing(self) -> list[str]:
        """The inputs that have to be sent, by their options.

        Raises:
            IntegrityError: Another file than the driver's is in the place of one.
        """
        task = self._task
        if task.version != _native.__version__:
            raise UnavailableError(
                f"{socket.gethostname()} has dpar-export {_native.__version__}, the driver {task.version}",
                "install the same version on every machine",
            )
        for wanted in task.inputs:
            path, kept = Path(wanted.path), self._kept(wanted)
            if path.exists() and not task.copied:
                found = digest(path)
                if found != wanted.sha256:
                    raise IntegrityError(
                        f"{socket.gethostname()}: {path} is not the driver's: it has the SHA-256 {found}, "
                        f"there {wanted.sha256}",
                        "put the same files on every machine, or let them be sent with `copy=True`",
                    )
                self._places[wanted.option] = path
            elif self._has_kept(wanted):
                self._places[wanted.option] = kept
        return [wanted.option for wanted in task.inputs if wanted.option not in self._places]

    def _kept(self, wanted: Input) -> Path:
        """Where an input is, once it was sent."""
        return kept_inputs() / wanted.sha256 / Path(wanted.path).name

    def _has_kept(self, wanted: Input) -> bool:
        """Whether what was sent once is there; what is left of it where somebody tidied the temporary folder is removed."""
        kept = self._kept(wanted)

        def is_whole() -> bool:
            try:
                _check(kept, wanted)
            except (IntegrityError, OSError, ValueError, KeyError, TypeError):
                return False
            return True

        if is_whole():
            return True
        with _alone():
            # Not what another worker of this machine put in its place meanwhile.
            if not is_whole():
                shutil.rmtree(kept.parent, ignore_errors=True)
        return False

    def keep(self, option: str, name: str, piece: Any) -> None:
        """Appends a piece to a file of an input: bytes, or an array of them."""
        if option not in self._sent:
            self._sent[option] = self._folder / f"sent-{option}"
        folder = self._sent[option]
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{name!r} is no name of a file in a bundle")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(memoryview(piece))

    def _settle(self, wanted: Input) -> None:
        """Gives what was sent its name, once every file of it is known to be what was to be sent."""
        sent, kept = self._sent.pop(wanted.option, None), self._kept(wanted)
        if sent is None:
            raise IntegrityError(f"{wanted.path} was to be sent, and nothing came")
        try:
            # A file lies in the folder of its digest, a bundle takes the file's place.
            came = sent if (sent / "manifest.json").is_file() else sent / kept.name
            _check(came, wanted)
            for written in sent.rglob("*"):
                sync(written)
            kept.parent.mkdir(exist_ok=True)
            try:
                came.rename(kept)
            except OSError:
                # Another worker of this machine was first.
                if not kept.exists():
                    raise
        finally:
            shutil.rmtree(sent, ignore_errors=True)
        self._places[wanted.option] = kept

    def open(self) -> dict[str, Any]:
        """Starts the process that evaluates parts, and says who it is.

        Raises:
            DparError: What the process ended with.
            IntegrityError: What it would evaluate is not what the driver evaluates.
        """
        for wanted in self._task.inputs:
            if wanted.option not in self._places:
                self._settle(wanted)
        self._start()
        return self._who()

    def _who(self) -> dict[str, Any]:
        process = self._process.pid if self._process else None
        return {"host": socket.gethostname(), "pid": os.getpid(), "process": process}

    def _start(self) -> subprocess.Popen[str]:
        task = self._task
        given = [f"--{option}={path}" for option, path in self._places.items()]
        own = [f"--pull={task.shards}", f"--output={self._folder}", f"--threads={task.threads}", "--resume"]
        program = [sys.executable, "-m", "dpar_export", *task.words, *given, *own, "--quiet", "--log-format=json"]
        self._talk = (self._folder / "talk").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._talk, text=True,
            cwd=task.folder if Path(task.folder).is_dir() else None,
        )  # fmt: skip
        found = self._answer()
        if found["key"] != task.key:
            self._end()
            raise IntegrityError(
                f"{socket.gethostname()} would compute other features than the driver: its engine, device, extractor or "
                "options differ",
                "`dpar-export doctor` says on each machine which engines it has",
            )
        return self._process

    def _answer(self) -> dict[str, Any]:
        """A line of the process."""
        process = self._process
        if process is None or process.stdout is None:
            raise Lost("there is no process")
        line = process.stdout.readline()
        if not line:
            self._ended(process)
        answer = json.loads(line)
        return answer if isinstance(answer, dict) else {}

    def _ended(self, process: subprocess.Popen[str]) -> NoReturn:
        code = process.wait()
        said: dict[str, Any] = {"message": f"the worker's process ended with exit code {code}"}
        if self._talk is not None:
            self._talk.seek(0)
            for line in self._talk:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and record.get("kind") == "error":
                    said = record
        self._end()
        message = f"{socket.gethostname()}: {said['message']}"
        if code in FINAL:
            kind = RunError if said.get("cause") == "run" else FINAL[code]
            raise kind(message, said.get("hint"), said.get("details", ()), code)
        raise Lost(message)

    def part(self, number: int) -> Part:
        """Evaluates a part.

        Raises:
            DparError: What no other try changes.
            Lost: The process ended in another way. The next call starts another.
        """
        process = self._process or self._start()
        if process.stdin is None:
            raise Lost("there is no process")
        try:
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        except OSError:
            self._ended(process)
        answer = self._answer()
        folder = self._folder / f"part-{number}"
        files = {p.name: p.read_bytes() for p in sorted((folder / "samples").iterdir())}
        sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        # Before anything is held against it: who does the part again begins anew.
        shutil.rmtree(folder)
        unlike = [name for name, found in answer["rows_sha256"].items() if sha256.get(name) != found]
        if unlike:
            raise Lost(f"{socket.gethostname()}: {', '.join(unlike)} of part {number} changed on the disk")
        return Part(number, answer["images"], files, sha256, self._memory(process.pid), self._who())

    @staticmethod
    def _memory(pid: int) -> int:
        try:
            with open(f"/proc/{pid}/status", encoding="utf-8") as file:
                kilobytes = next((line.split()[1] for line in file if line.startswith("VmHWM")), "0")
        except OSError:
            return 0
        return int(kilobytes) * 1024

    def _end(self) -> None:
        """Ends the process: it has nothing that would be missed."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        pass
        if self._talk is not None:
            self._talk.close()
            self._talk = None

    def close(self) -> None:
        """Ends the process, and leaves nothing on the disk but what was sent."""
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
