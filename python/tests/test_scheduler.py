"""A scheduler that several threads share: the bytes of `generate`, in one batch."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import dpar_export
import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "share_a_bundle.py"


def of(job: dpar_export.Job) -> list[dpar_export.Image]:
    images = [event for event in job if isinstance(event, dpar_export.Image)]
    return sorted(images, key=lambda image: image.image)


def until(what: str, holds: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.005)


def test_threads_share_a_batch_and_get_the_bytes_of_generate(bundle_path: Path, engine: str) -> None:
    asked = [dict(classes=[i, 8 - i], seed=i, cfg_scale=1.0 + i % 3) for i in range(6)]
    with dpar_export.open(bundle_path, engine=engine, threads=1) as bundle:
        alone = [bundle.generate(batch=1, **asking) for asking in asked]  # type: ignore[arg-type]
        got: dict[int, list[dpar_export.Image]] = {}
        with bundle.scheduler(rows=4) as scheduler:
            together = threading.Barrier(len(asked))

            def ask(i: int) -> None:
                together.wait()
                got[i] = of(scheduler.submit(**asked[i]))  # type: ignore[arg-type]

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            stats = scheduler.stats()
            assert scheduler.unwell is None and "0 of 4 rows" in repr(scheduler)
        for i, whole in enumerate(alone):
            assert whole.images is not None
            for j, image in enumerate(got[i]):
                assert image.pixels is not None
                assert image.pixels.tobytes() == whole.images[j].tobytes(), (i, j)
                assert image.class_label == whole.class_labels[j] and image.index == j
                np.testing.assert_array_equal(image.tokens, whole.tokens[j])
                assert list(image.patch_lengths) == whole.patches(j)
        assert len(got) == 6 and stats["done"] == 12 and stats["tokens"] == 12 * bundle.tokens
        [encoder] = [graph for graph in stats["graphs"] if graph["graph"] == "encoder_step"]
        assert encoder["rows"] / encoder["calls"] > 1.5, "images of several threads are in one call"
        with pytest.raises(dpar_export.RunError, match="ended"):
            scheduler.submit(num=1)


def test_events(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle, bundle.scheduler(rows=2) as scheduler:
        whole = bundle.generate(num=2, seed=3, cfg_scale=2.0)
        assert whole.images is not None
        seen: dict[str, list[int]] = {"Token": [], "Patch": [], "Preview": [], "Image": []}
        with scheduler.submit(num=2, seed=3, cfg_scale=2.0, tokens=True, preview_every=4) as job:
            for event in job:
                seen[type(event).__name__].append(event.image)
                match event:
                    case dpar_export.Token(image=i, slot=slot, token=token, entropy=entropy):
                        assert token == whole.tokens[i, slot]
                        np.testing.assert_allclose(entropy, whole.entropy[i, slot], atol=1e-4)
                    case dpar_export.Patch(image=i, first=first, entropy=entropy):
                        np.testing.assert_allclose(entropy, whole.entropy[i, first], atol=1e-4)
                    case dpar_export.Preview(tokens=drawn, pixels=pixels):
                        assert 0 < drawn < bundle.tokens and pixels.shape == whole.images.shape[1:]
                    case dpar_export.Image():
                        pass
            assert job.poll(0.0) and list(job) == []
        assert len(seen["Token"]) == 2 * bundle.tokens and sorted(seen["Image"]) == [0, 1]
        assert len(seen["Patch"]) == whole.steps.sum() and seen["Preview"]
        other = of(scheduler.submit(num=2, seed=3, threshold=100.0, images=False))
        assert all(image.pixels is None for image in other)
        # A rule of its own: patches as long as they may be.
        assert sum(image.steps for image in other) < whole.steps.sum()


def test_who_gives_up_frees_the_row(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path, threads=1) as bundle, bundle.scheduler(rows=1) as scheduler:
        whole = bundle.generate(num=1, seed=5)
        long = scheduler.submit(num=64)
        until("the first image is in its row", lambda: scheduler.stats()["busy"] == 1)
        short = scheduler.submit(num=1, seed=5)
        assert not short.poll(0.0), "one row, which another job has"
        # Also from another thread, while one waits.
        ended: list[dpar_export.Image] = []
        waits = threading.Thread(target=lambda: ended.extend(of(long)))
        waits.start()
        long.cancel()
        long.cancel()
        waits.join(60)
        assert not waits.is_alive() and len(ended) < 64
        [image] = of(short)
        assert whole.images is not None and image.pixels is not None
        assert image.pixels.tobytes() == whole.images[0].tobytes()
        assert list(long) == []
        until("the images that were given up are counted", lambda: scheduler.stats()["dropped"] > 32)
        forgotten = scheduler.submit(num=64)
        del forgotten
        until("who forgets a job gives it up", lambda: scheduler.stats()["busy"] == scheduler.stats()["waiting"] == 0)


def test_limits_are_exceptions(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path, threads=1) as bundle:
        with bundle.scheduler(rows=1, queue=2, job_images=3) as scheduler:
            with pytest.raises(dpar_export.InputError, match="3 are allowed"):
                scheduler.submit(num=4)
            jobs: list[dpar_export.Job] = []
            with pytest.raises(dpar_export.BusyError) as busy:
                for _ in range(4):
                    jobs.append(scheduler.submit(num=3))
            assert busy.value.hint is not None and "ask again" in busy.value.hint and busy.value.kind == "busy"
            for wrong in (
                dict(classes=[99]),
                dict(num=1, preview_every=0),
                dict(num=1, cfg_scale=1e9),
                dict(num=1, temperature=-1.0),
                dict(num=1, threshold=float("nan")),
                dict(num=1, max_patch_length=1000),
                dict(),
            ):
                with pytest.raises(dpar_export.InputError):
                    scheduler.submit(**wrong)
            with pytest.raises(dpar_export.InputError, match="seconds"):
                jobs[0].poll(-1.0)
            scheduler.close(cancel=True)
            assert scheduler.unwell is not None
        with bundle.scheduler(rows=1, decode_time=1e-6) as late:
            with pytest.raises(dpar_export.BusyError, match="not complete"):
                of(late.submit(num=1))
        for wrong in (dict(rows=0), dict(rows=257), dict(queue_time=0.0), dict(decode_time=float("inf"))):
            with pytest.raises(dpar_export.InputError):
                bundle.scheduler(**wrong)


def test_closing_ends_jobs_or_waits_for_them(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path, threads=1) as bundle:
        scheduler = bundle.scheduler(rows=2)
        job = scheduler.submit(num=4, seed=1)
        scheduler.close()
        assert job.poll(0.0) and len(of(job)) == 4
        scheduler = bundle.scheduler(rows=1)
        job = scheduler.submit(num=64)
        scheduler.close(cancel=True)
        with pytest.raises(dpar_export.RunError, match="ended"):
            of(job)


def test_a_process_may_end_in_the_middle(bundle_path: Path, engine: str) -> None:
    script = (
        "import sys, dpar_export\n"
        "bundle = dpar_export.open(sys.argv[1], engine=sys.argv[2])\n"
        "scheduler = bundle.scheduler(rows=4)\n"
        "job = scheduler.submit(num=64)\n"
        "next(job)\n"
    )
    words = [sys.executable, "-c", script, str(bundle_path), engine]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_may_fork_and_a_scheduler_be_forgotten(bundle_path: Path, engine: str) -> None:
    script = (
        "import gc, os, sys, dpar_export\n"
        "bundle = dpar_export.open(sys.argv[1], engine=sys.argv[2])\n"
        "job = bundle.scheduler(rows=4).submit(num=64)\n"
        "scheduler = bundle.scheduler(rows=4)\n"
        "other = scheduler.submit(num=64)\n"
        "next(job), next(other), gc.collect()\n"
        "assert len(dpar_export._scheduler._open) == 2\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    for asked in (lambda: scheduler.submit(num=1), scheduler.stats, lambda: next(other), lambda: job.poll(600)):\n"
        "        try:\n"
        "            asked()\n"
        "        except dpar_export.InputError as error:\n"
        "            assert 'fork' in str(error)\n"
        "        else:\n"
        "            sys.exit(1)\n"
        "    with scheduler:\n"
        "        sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "next(job)\n"
    )
    words = [sys.executable, "-W", "ignore", "-c", script, str(bundle_path), engine]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_example(bundle_path: Path) -> None:
    words = [sys.executable, str(EXAMPLE), str(bundle_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps") == 4 and "rows in a call" in done.stdout
