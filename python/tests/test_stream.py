"""Events while it decodes; ending in the middle."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
from pathlib import Path

import dpar_export
import numpy as np
import pytest


def resident() -> int:
    """Bytes of this process in memory, what the allocator keeps for later given back."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_events_tell_the_whole_story(bundle_path: Path, engine: str) -> None:
    classes = [1, 5, 8]
    with dpar_export.open(bundle_path, engine=engine) as bundle:
        whole = bundle.generate(classes=classes, seed=4, cfg_scale=2.0, batch=2)
        tokens: dict[int, list[int]] = {i: [] for i in range(3)}
        patches: dict[int, list[int]] = {i: [] for i in range(3)}
        done: list[int] = []
        with bundle.stream(classes=classes, seed=4, cfg_scale=2.0, batch=2) as events:
            for event in events:
                match event:
                    case dpar_export.Token(image=i, slot=slot, token=token):
                        assert slot == len(tokens[i])
                        tokens[i].append(token)
                    case dpar_export.Patch(image=i, first=first, last=last):
                        assert first == sum(patches[i]) and last < len(tokens[i])
                        patches[i].append(last - first + 1)
                    case dpar_export.Image(image=i) as image:
                        done.append(i)
                        assert whole.images is not None and image.pixels is not None
                        assert image.pixels.tobytes() == whole.images[i].tobytes()
                        assert image.class_label == classes[i] and image.index == i
                        np.testing.assert_array_equal(image.tokens, whole.tokens[i])
                        np.testing.assert_array_equal(image.entropy, whole.entropy[i])
                        assert list(image.patch_lengths) == whole.patches(i)
            assert events.closed
    assert sorted(done) == [0, 1, 2]
    for i in range(3):
        assert tokens[i] == list(whole.tokens[i]) and patches[i] == whole.patches(i)


def test_cancelled_after_one_patch_its_caches_are_free(bundle_path: Path, engine: str) -> None:
    with dpar_export.open(bundle_path, engine=engine, threads=1) as bundle:
        expected = bundle.generate(classes=[2], cfg_scale=2.0)

        def first_patch() -> int:
            with bundle.stream(num=64, cfg_scale=2.0, batch=64, images=False) as events:
                for event in events:
                    if isinstance(event, dpar_export.Patch):
                        return resident()
            raise AssertionError("no patch ended")

        first_patch()
        before = resident()
        within = first_patch()
        after = resident()
        assert after < before * 1.05, (before, within, after)
        assert within > after, "the caches of 64 images take memory"
        samples = bundle.generate(classes=[2], cfg_scale=2.0)
        assert samples.images is not None and expected.images is not None
        assert samples.images.tobytes() == expected.images.tobytes()


def test_one_image_is_given_up(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle:
        whole = bundle.generate(num=3, seed=9, images=False)
        with bundle.stream(num=3, seed=9, images=False) as events:
            next(events)
            assert events.cancel(1) and not events.cancel(1) and not events.cancel(17)
            images = {e.image: e for e in events if isinstance(e, dpar_export.Image)}
    assert sorted(images) == [0, 2]
    for i, image in images.items():
        np.testing.assert_array_equal(image.tokens, whole.tokens[i])


def test_a_closed_stream_has_no_event(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle:
        events = bundle.stream(num=2)
        next(events)
        events.close()
        events.close()
        assert events.closed and list(events) == []
        left = bundle.stream(num=1)
    # The bundle is closed, what the stream uses is still there.
    assert sum(isinstance(e, dpar_export.Image) for e in left) == 1
    with pytest.raises(dpar_export.InputError, match="closed"):
        bundle.generate(num=1)


def test_a_signal_may_close_it(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle:
        n, last = 64, bundle.tokens - 1
        events = bundle.stream(num=n, batch=n)
        # The last images take longer than the program goes without asking Python for signals.
        signal.signal(signal.SIGALRM, lambda *_: events.close())
        faulthandler.dump_traceback_later(120, exit=True)
        seen = 0
        for event in events:
            if isinstance(event, dpar_export.Token) and event.slot == last - 1 and event.image == n - 1:
                signal.setitimer(signal.ITIMER_REAL, 0.06)
            seen += isinstance(event, dpar_export.Image)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert events.closed and seen <= n


def test_opening_and_closing_does_not_grow(bundle_path: Path, engine: str) -> None:
    def cycle() -> None:
        with dpar_export.open(bundle_path, engine=engine, threads=1) as bundle:
            bundle.facts_are_there = bundle.tokens  # type: ignore[attr-defined]

    def with_work() -> None:
        with dpar_export.open(bundle_path, engine=engine, threads=1) as bundle:
            bundle.decode(np.zeros((1, bundle.tokens), np.int64))

    with_work()
    for _ in range(20):
        cycle()
    with_work()
    before = resident()
    for i in range(200):
        with_work() if i % 10 == 0 else cycle()
    after = resident()
    assert after < before * 1.03 + (2 << 20), (before, after)
