"""A scheduler that several threads share."""

from __future__ import annotations

import atexit
import json
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, cast

from dpar_export import _native
from dpar_export._asking import Sampler, drawing, whole
from dpar_export._errors import InputError


class Scheduler:
    """What `Bundle.scheduler` returns: images for several threads, decoded in one batch.

    An image joins the others at the next step, and leaves its row when it is complete: nobody waits for a batch to
    end. What is drawn depends on seed, index, class and options alone, as in `Bundle.generate`, and has the same bytes.

    Methods may be called from several threads. Decoding runs in a thread of its own, whether somebody waits for it or not. Use it
    in a `with` statement, or call `close`. A process that is forked from this one has no such thread: `submit` raises an `InputError`
    there, and a scheduler is started behind the fork.
    """

    def __init__(self, native: _native.Scheduler) -> None:
        self._native = native
        _open.add(native)

    def submit(
        self,
        *,
        classes: Iterable[int] | None = None,
        num: int | None = None,
        seed: int = 0,
        first: int = 0,
        cfg_scale: float = 1.0,
        cfg_interval: int | None = None,
        sampler: Sampler = "gumbel",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        threshold: float | None = None,
        max_patch_length: int | None = None,
        patch_size: float | None = None,
        images: bool = True,
        tokens: bool = False,
        preview_every: int | None = None,
    ) -> _native.Job:
        """Asks for images, and returns at once.

        Args:
            classes: As in `Bundle.generate`, with `num`, `seed`, `first` and what follows them.
            threshold: Entropy in nats above which a token opens a patch, in place of the bundle's; other jobs may have another.
            max_patch_length: Most tokens of a patch; no more than the bundle was exported for.
            patch_size: Tokens of a patch in static patching.
            images: Turn the tokens into pixels too.
            tokens: Tell every token as it is drawn.
            preview_every: Tell a picture of what is drawn so far after so many patches; one that nobody takes is not followed by
                another.

        Raises:
            InputError: A class, a number or a combination that cannot be; more images than a job may have.
            BusyError: Too many images wait already; the hint says when to ask again.
            IntegrityError: A file of the bundle was changed.
            RunError: The scheduler was closed.
        """
        asking = drawing(
            classes=classes, num=num, seed=seed, first=first, cfg_scale=cfg_scale, cfg_interval=cfg_interval,
            sampler=sampler, temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy, images=images,
        )  # fmt: skip
        if preview_every is not None and whole("preview_every", preview_every, 2**32) == 0:
            raise InputError("preview_every is at least 1")
        extras = {
            "threshold": threshold, "max_patch_length": max_patch_length, "patch_size": patch_size, "tokens": tokens,
            "preview_every": preview_every,
        }  # fmt: skip
        return self._native.submit(asking, extras)

    def stats(self) -> dict[str, Any]:
        """What it has counted so far.

        Returns:
            `rows`, `busy` and `waiting` of this moment; `done`, `failed`, `dropped` (given up by who asked), `late` and `full`
            (refused), `tokens` and `patches` since it was started; `graphs`, a list with `graph`, `calls` and `rows`: rows / calls
            of `decoder_step` is how many rows a step had on average, the class twice where guidance runs.
        """
        return cast(dict[str, Any], json.loads(self._native.stats()))

    @property
    def unwell(self) -> str | None:
        """Why it should get no more jobs: a file of the bundle was changed, it was closed, or everything failed lately."""
        return self._native.unwell()

    def close(self, *, cancel: bool = False) -> None:
        """Takes no more jobs, and returns when what was asked for is done. May be called twice.

        Args:
            cancel: End the jobs under way before their next step; who waits for them gets a `RunError`.

        Raises:
            KeyboardInterrupt: Ctrl-C, while it waits.
        """
        self._native.close(cancel)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(cancel=kind is not None)

    def __repr__(self) -> str:
        try:
            stats = self.stats()
        except InputError:
            return "Scheduler(of the process before the fork)"
        return f"Scheduler({stats['busy']} of {stats['rows']} rows busy, {stats['waiting']} images wait)"


# The native ones, which their jobs keep: who forgets a scheduler may still wait for a job.
_open: weakref.WeakSet[_native.Scheduler] = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """No thread decodes while the libraries under it are taken down."""
    for scheduler in list(_open):
        scheduler.close(True)
