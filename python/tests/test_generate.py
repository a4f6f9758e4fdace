"""What is drawn: the same from Python and from the command line, whatever the batch and the neighbours."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import dpar_export
import numpy as np
import pytest
from conftest import FIXTURES, Cli


def test_python_and_the_command_line_draw_the_same_bytes(
    bundle_path: Path, engine: str, cli: Cli, tmp_path: Path
) -> None:
    done = cli(
        "generate", bundle_path, "--num", 11, "--seed", 3, "--cfg-scale", 2, "--engine", engine, "--batch", 5,
        "--threads", 2, "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trace = np.load(tmp_path / "out" / "trace.npz")
    pixels = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    with dpar_export.open(bundle_path, engine=engine, threads=2) as bundle:
        for batch in (1, 3, 16):
            samples = bundle.generate(num=11, seed=3, cfg_scale=2.0, batch=batch)
            for name in ("tokens", "patch_lengths", "steps", "class_labels"):
                np.testing.assert_array_equal(getattr(samples, name), trace[name], err_msg=f"{name}, batch {batch}")
            np.testing.assert_allclose(samples.entropy, trace["entropy"], atol=1e-4)
            assert samples.images is not None
            assert samples.images.tobytes() == pixels.tobytes(), f"batch {batch}"


def test_neighbours_and_schedules_change_nothing(bundle_path: Path, engine: str) -> None:
    with dpar_export.open(bundle_path, engine=engine) as bundle:
        whole = bundle.generate(num=6, seed=1, cfg_scale=1.5)
        assert whole.images is not None
        schedules: tuple[Literal["patch", "continuous"], ...] = ("patch", "continuous")
        for schedule in schedules:
            other = bundle.generate(num=6, seed=1, cfg_scale=1.5, batch=2, schedule=schedule)
            assert other.images is not None
            assert other.images.tobytes() == whole.images.tobytes(), schedule
        part = bundle.generate(num=2, seed=1, first=4, cfg_scale=1.5)
        assert part.images is not None
        assert part.images.tobytes() == whole.images[4:].tobytes()
        assert list(part.indices) == [4, 5]


def test_arrays_are_described_and_not_copies(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle:
        samples = bundle.generate(classes=[1, 5], cfg_scale=2.0)
        t, size = bundle.tokens, bundle.image_size
    assert samples.images is not None
    described = {
        name: (str(getattr(samples, name).dtype), getattr(samples, name).shape)
        for name in ("tokens", "entropy", "margin", "images", "steps", "indices")
    }
    assert described == {
        "tokens": ("int64", (2, t)),
        "entropy": ("float32", (2, t)),
        "margin": ("float32", (2, t)),
        "images": ("uint8", (2, size, size, 3)),
        "steps": ("int64", (2,)),
        "indices": ("uint64", (2,)),
    }
    assert np.isnan(samples.entropy[:, 0]).all() and np.isfinite(samples.entropy[:, 1:]).all()
    assert list(samples.patch_lengths.sum(axis=1)) == [t, t]
    assert list(samples.steps) == [len(samples.patches(i)) for i in range(2)]
    assert list(samples.class_labels) == [1, 5]
    for array in (samples.tokens, samples.images, samples.entropy):
        # The memory is Rust's: numpy owns none of it, at either end of the chain.
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert not base.flags.owndata and base.base is not None


def test_what_it_draws_is_what_the_authors_code_draws(bundle_path: Path, engine: str) -> None:
    """1,024 recorded images; here the first 16."""
    from dpar_export import _native

    with dpar_export.open(bundle_path, engine=engine) as bundle:
        done = bundle.verify(streams=FIXTURES / "emoji32" / "streams_dpar.safetensors", limit=16, probes=False)
        assert done.passed, done
    assert _native.__version__ == dpar_export.__version__


def test_llamagen_has_no_entropy(llamagen_path: Path, engine: str) -> None:
    with dpar_export.open(llamagen_path, engine=engine) as bundle:
        samples = bundle.generate(classes=[0, 3, 7], cfg_scale=2.0, cfg_interval=20, images=False)
    assert samples.images is None and np.isnan(samples.entropy).all()
    with pytest.raises(dpar_export.InputError, match="no images"):
        samples.grid()


def test_other_threads_run_meanwhile(bundle_path: Path) -> None:
    """Two calls of one bundle at a time, and an interpreter that is free for a third thread."""
    with dpar_export.open(bundle_path, threads=1) as bundle:
        alone = bundle.generate(num=4, seed=2)
        results: dict[int, dpar_export.Samples] = {}
        threads = [
            threading.Thread(target=lambda i=i: results.update({i: bundle.generate(num=4, seed=2)})) for i in range(2)
        ]
        for thread in threads:
            thread.start()
        turns = 0
        while any(thread.is_alive() for thread in threads):
            turns += 1
        for thread in threads:
            thread.join()
    assert turns > 100
    for samples in results.values():
        assert samples.images is not None and alone.images is not None
        assert samples.images.tobytes() == alone.images.tobytes()
    assert len(results) == 2
