"""The driver on Ray: workers that pull parts, what happens when they are lost or late."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import re
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpar_export._errors import DparError, InputError, RunError, UnavailableError
from dpar_export._parts import Parts
from dpar_export._worker import Input, Lost, Part, Task, Worker, files_of

#: Oldest Ray that this is tested with.
OLDEST = (2, 40)
#: Bytes of a file that are sent at a time.
PIECE = 64 << 20
#: Tries of a part whose worker's process ends.
TRIES = 4
#: A part is late once it takes so many times what parts take.
LATE = 1.5
#: Seconds after which is looked who is late.
GLANCE = 0.5
#: Seconds after which a part is late when none is done yet.
FIRST = 3600.0
#: Seconds of silence after which a warning comes, and again after twice the time.
SILENCE = 60.0
#: Seconds for which the cluster may have no worker running, so that one that grows has time.
PATIENCE = 900.0
#: Seconds for workers to clean up.
FAREWELL = 5.0

log = logging.getLogger("dpar_export")


def _load() -> Any:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UnavailableError(f"Ray cannot be imported: {error}", "pip install 'dpar-export[ray]'") from None
    found = str(getattr(ray, "__version__", "0"))
    numbers = tuple(int(n) for n in found.split(".")[:2] if n.isdigit())
    if numbers < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise UnavailableError(f"Ray {found} is too old: {wanted} or later is needed", "pip install 'dpar-export[ray]'")
    return ray


def _said(error: Exception) -> list[str]:
    """What Ray says, line by line and without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]


def _connect(ray: Any, address: str) -> bool:
    """Connects to a cluster; false where the program has done so."""
    if ray.is_initialized():
        return False
    told = None if address == "ray" else address
    try:
        ray.init(address=told, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    except Exception as error:
        # Whatever Ray says: no connection, another version of Ray or of Python.
        lines = _said(error)
        where = "a Ray cluster" if told is None else told
        raise UnavailableError(
            f"{where} cannot be reached: {lines[0]}",
            "is it running, with the Ray and the Python of this machine?",
            lines[1:8],
        ) from None
    return True


class _Hand:
    """A worker: its actor, and what it is doing."""

    def __init__(self, actor: Any, ref: Any, failed: int) -> None:
        self.actor = actor
        #: Times that it, or those whose place it took, failed to open what it needs.
        self.failed = failed
        #: Promises that what was sent is stored.
        self.kept: list[Any] = []
        #: What it was asked last, and the promise of the answer; None: it waits for work.
        self.ref: Any = ref
        self.doing = "missing"
        self.number = 0
        self.since = 0.0
        self.host = "a worker"


class Driver:
    """Gives the parts of a task to workers until all are there."""

    def __init__(self, task: Task, store: Parts, resources: Mapping[str, float], workers: int | None) -> None:
        self._task, self._store, self._resources, self._wanted = task, store, resources, workers
        self._ray = _load()
        self._hands: list[_Hand] = []
        self._waiting: deque[int] = deque(store.missing())
        self._tries: Counter[int] = Counter()
        self._seconds: list[float] = []
        self._lost = 0
        self._heard, self._warned = time.monotonic(), SILENCE
        self._sent: dict[str, list[tuple[str, Any]]] = {}
        self._actor: Any = None

    def run(self, address: str, progress: Callable[[int, int], None] | None, images: int) -> None:
        """Does all parts that are missing.

        Raises:
            DparError: What no other try changes, or too many tries.
        """
        own = _connect(self._ray, address)
        try:
            room = self._room()
            try:
                self._actor = self._ray.remote(Worker).options(**self._options())
                for _ in range(min(room, len(self._waiting))):
                    self._hire()
            except ValueError as error:
                raise InputError(f"Ray refuses what a worker is to take: {_said(error)[0]}") from None
            self._heard = time.monotonic()
            told = -1
            while True:
                done = self._store.images()
                if progress is not None and done != told:
                    progress(done, images)
                told = done
                if not self._store.missing():
                    break
                self._turn()
        except (ConnectionError, self._ray.exceptions.RayError) as error:
            # What a worker failed with is no error here: this is Ray's own, a full object store for one.
            lines = _said(error)
            raise UnavailableError(f"the Ray cluster fails: {lines[0]}", "go on with --resume", lines[1:8]) from None
        finally:
            # What happens here changes no result, and hides no failure.
            with contextlib.suppress(Exception):
                self._dismiss()
            self._sent.clear()
            if own:
                self._ray.shutdown()

    def _dismiss(self) -> None:
        """Ends the workers; those who are free clean up first."""
        closing = [hand.actor.close.remote() for hand in self._hands if hand.ref is None]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=FAREWELL)
        for hand in self._hands:
            self._ray.kill(hand.actor)

    def _room(self) -> int:
        """Workers that are asked for, or that the cluster has room for."""
        if self._wanted is not None:
            return self._wanted
        there = self._ray.cluster_resources()
        asked = {name: amount for name, amount in self._resources.items() if amount > 0}
        fit = [math.floor(there.get(name, 0) / amount) for name, amount in asked.items()]
        room = min(fit, default=1)
        if room < 1:
            has = ", ".join(f"{name}={there.get(name, 0):g}" for name in asked)
            raise UnavailableError(
                f"the cluster has no room for a worker: of what one takes it has {has}",
                "ask for less, or say `workers` where it grows when it is asked",
            )
        return room

    def _options(self) -> dict[str, Any]:
        """What a worker takes, in the arguments that Ray has for it."""
        custom = dict(self._resources)
        options: dict[str, Any] = {"num_cpus": custom.pop("CPU", 0), "num_gpus": custom.pop("GPU", 0)}
        if "memory" in custom:
            options["memory"] = int(custom.pop("memory"))
        return {**options, "resources": custom or None}

    def _hire(self, failed: int = 0) -> None:
        actor = self._actor.remote(self._task)
        self._hands.append(_Hand(actor, actor.missing.remote(), failed))

    def _patience(self) -> None:
        """Says when nobody answers, and ends when no worker comes to run."""
        silent = time.monotonic() - self._heard
        if silent > PATIENCE and all(hand.doing == "missing" for hand in self._hands):
            raise UnavailableError(
                f"no worker has answered for {silent:.0f} seconds",
                "has the cluster what a worker takes, and machines that run? Go on with --resume",
            )
        if silent > self._warned:
            log.warning("no worker has answered for %.0f seconds", silent)
            self._warned *= 2

    def _turn(self) -> None:
        """Waits for one answer, or a moment; then everybody who is free gets work."""
        asked = {hand.ref: hand for hand in self._hands if hand.ref is not None}
        ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=GLANCE)
        if ready:
            self._heard, self._warned = time.monotonic(), SILENCE
        else:
            self._patience()
        for ref in ready:
            self._answered(asked[ref])
        for hand in [hand for hand in self._hands if hand.ref is None]:
            number = self._next()
            if number is None:
                break
            hand.doing, hand.number, hand.since = "part", number, time.monotonic()
            hand.ref = hand.actor.part.remote(number)

    def _next(self) -> int | None:
        """The part that is to be done next; when all are under way, one that is late and has one worker."""
        if self._waiting:
            return self._waiting.popleft()
        under_way = Counter(hand.number for hand in self._hands if hand.doing == "part")
        limit = LATE * statistics.median(self._seconds) if self._seconds else FIRST
        latest = time.monotonic() - limit
        late = [
            (hand.since, hand.number)
            for hand in self._hands
            if hand.doing == "part" and hand.since < latest and under_way[hand.number] == 1
        ]
        return min(late)[1] if late else None

    def _answered(self, hand: _Hand) -> None:
        errors = self._ray.exceptions
        try:
            # An actor does one thing after another: what was sent before this is stored, or was not.
            kept, hand.kept = hand.kept, []
            answer = self._ray.get([*kept, hand.ref])[-1]
        except errors.RayTaskError as error:
            self._failed(hand, error)
            return
        except (errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError) as error:
            self._died(hand, error)
            return
        if hand.doing == "missing":
            for option in answer:
                for name, piece in self._pieces(next(i for i in self._task.inputs if i.option == option)):
                    hand.kept.append(hand.actor.keep.remote(option, name, piece))
            hand.doing, hand.ref = "open", hand.actor.open.remote()
            return
        if hand.doing == "open":
            hand.host = f"{answer['host']} (pid {answer['pid']})"
            hand.failed = 0
            log.info("%s is ready", hand.host)
        elif isinstance(answer, Part):
            self._seconds.append(time.monotonic() - hand.since)
            self._lost = 0
            if self._store.add(answer):
                log.info("part %d of %d: %s", answer.number, self._task.shards, hand.host)
        hand.doing, hand.ref, hand.number = "idle", None, 0

    def _again(self, hand: _Hand) -> None:
        """The part of a worker that did not do it, unless another does."""
        others = {other.number for other in self._hands if other is not hand and other.doing == "part"}
        if hand.doing == "part" and hand.number in self._store.missing() and hand.number not in others:
            self._waiting.appendleft(hand.number)

    def _failed(self, hand: _Hand, error: Any) -> None:
        cause = getattr(error, "cause", None)
        if hand.doing == "part" and hand.number not in self._store.missing():
            log.warning("%s; part %d is there already", _said(error)[-1], hand.number)
            hand.doing, hand.ref, hand.number = "idle", None, 0
            return
        if isinstance(cause, DparError):
            raise cause
        # A full disk, for one, is that machine's.
        if not isinstance(cause, (Lost, OSError)):
            lines = _said(error)
            raise UnavailableError(f"{hand.host} failed: {lines[-1]}", None, lines[:8])
        if hand.doing != "part":
            self._unopened(hand, cause)
            return
        self._tries[hand.number] += 1
        if self._tries[hand.number] >= TRIES:
            raise RunError(f"part {hand.number} failed {TRIES} times: {cause}")
        log.warning("%s; part %d is done again", cause, hand.number)
        self._again(hand)
        hand.doing, hand.ref, hand.number = "idle", None, 0

    def _unopened(self, hand: _Hand, cause: Exception) -> None:
        """Another takes the place of a worker that cannot open what it needs, some times."""
        failed = hand.failed + 1
        self._leave(hand)
        if failed < TRIES:
            log.warning("%s; another worker is asked for", cause)
            self._hire(failed)
        elif self._hands:
            log.warning("%s; after %d times no other is asked for", cause, TRIES)
        else:
            raise RunError(f"workers cannot open what they need: {cause}")

    def _leave(self, hand: _Hand) -> None:
        self._hands.remove(hand)
        with contextlib.suppress(Exception):
            # It may be out of reach only.
            self._ray.kill(hand.actor)

    def _died(self, hand: _Hand, error: Exception) -> None:
        self._lost += 1
        lines = _said(error)
        if self._lost > 2 * len(self._hands) + 2:
            raise UnavailableError(f"workers end before they do anything: {lines[0]}", None, lines[1:8])
        log.warning("%s is lost: %s", hand.host, lines[0])
        self._again(hand)
        self._leave(hand)
        self._hire()

    def _pieces(self, wanted: Input) -> list[tuple[str, Any]]:
        """The files of an input in Ray's object store, put there once."""
        if wanted.option not in self._sent:
            self._sent[wanted.option] = [(name, self._ray.put(piece)) for name, piece in _cut(Path(wanted.path))]
        return self._sent[wanted.option]


def _cut(path: Path) -> Iterator[tuple[str, Any]]:
    for name, file in files_of(path):
        size = file.stat().st_size
        if size == 0:
            yield name, np.zeros(0, np.uint8)
            continue
        whole = np.memmap(file, np.uint8, mode="r")
        for at in range(0, size, PIECE):
            yield name, np.array(whole[at : at + PIECE])
