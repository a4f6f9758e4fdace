"""`evaluate --on ray` on a real Ray of this machine: whatever happens to workers and drivers, the bytes are one process's.

`cargo xtask ray` runs this. FID-Inception's shape has spatial features, so sFID is among the numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dpar_export
import numpy as np
import pytest
import seeded_inception
from conftest import FIXTURES, Cli
from dpar_export import cluster
from dpar_export._command import words

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# What Ray itself leaves open when it ends.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

#: Images, in eight parts.
NUM = 64
PARTS = 8


class Case:
    """An evaluation, and what one process finds."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        images = np.load(FIXTURES / "emoji32" / "real_images.npz")["arr_0"][:32]
        np.savez(folder / "reference.npz", images)
        self.folder = folder
        self.given: dict[str, Any] = {
            "bundle": bundle, "num": NUM, "reference": folder / "reference.npz", "seed": 5, "chunk": NUM // PARTS,
            "extractor": seeded_inception.export(folder), "engine": "ort", "batch": 8, "kid_subset_size": 10,
        }  # fmt: skip
        dpar_export.command("evaluate", output=folder / "whole", threads=1, **self.given)
        self.bytes = (folder / "whole" / "metrics.json").read_bytes()
        assert "sfid" in json.loads(self.bytes)["metrics"]

    def spread(self, name: str, **more: Any) -> Path:
        out = self.folder / name
        cluster.evaluate(out=out, **{**self.given, "resources": {"CPU": 0.5}, **more})
        return out

    def check(self, out: Path) -> None:
        assert (out / "metrics.json").read_bytes() == self.bytes
        assert not Path(f"{out}.parts").exists()


def receipts(out: Path) -> list[dict[str, Any]]:
    """Of the parts that are there; one that is being removed is none."""
    found = []
    for path in Path(f"{out}.parts").glob("[0-9]*/receipt.json"):
        try:
            found.append(json.loads(path.read_text()))
        except OSError:
            continue
    return found


def when(ready: Callable[[], bool]) -> None:
    for _ in range(1200):
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that in a minute")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Case:
    return Case(tmp_path_factory.mktemp("ray"), bundle_path)


@pytest.fixture(scope="module")
def cluster_here(case: Case) -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster_here")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers(case: Case, workers: int) -> None:
    done: list[tuple[int, int]] = []
    # The first sends bundle and extractor through the object store.
    out = case.spread(f"{workers}", workers=workers, copy=workers == 1, progress=lambda n, of: done.append((n, of)))
    case.check(out)
    assert done[-1] == (NUM, NUM) and done == sorted(done)


@pytest.mark.usefixtures("cluster_here")
@pytest.mark.parametrize("who", ["pid", "process"])
def test_a_worker_that_is_killed(case: Case, who: str) -> None:
    out, killed = case.folder / f"killed {who}", []

    def kill() -> None:
        when(lambda: len(receipts(out)) >= 2)
        killed.append(receipts(out)[0]["worker"][who])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    case.spread(out.name, workers=2)
    killer.join()
    assert killed
    case.check(out)


@pytest.mark.usefixtures("cluster_here")
def test_a_worker_that_stands_still_is_not_waited_for(case: Case) -> None:
    out, stopped = case.folder / "late", []

    def stop() -> None:
        when(lambda: len(receipts(out)) >= 2)
        stopped.append(receipts(out)[0]["worker"]["process"])
        os.kill(stopped[0], signal.SIGSTOP)

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        case.spread(out.name, workers=2)
    finally:
        stopper.join()
        with contextlib.suppress(ProcessLookupError):
            # Ray has ended what its worker had begun.
            os.kill(stopped[0], signal.SIGKILL)
    case.check(out)


@pytest.mark.usefixtures("cluster_here")
def test_what_no_other_try_changes_ends_it(case: Case) -> None:
    with pytest.raises(dpar_export.UnavailableError, match="no room"):
        case.spread("no room", resources={"GPU": 1})
    with pytest.raises(dpar_export.InputError, match="already exists"):
        case.spread("whole")


def test_a_driver_that_is_killed(case: Case) -> None:
    """The command line, each time with a Ray of its own."""
    out = case.folder / "driver"
    own = {**case.given, "output": out, "on": "ray", "workers": 2, "resource": "CPU=0.5", "threads": 1}
    line = [sys.executable, "-m", "dpar_export", "evaluate", *words(own)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(line, env=environment) as driver:
        when(lambda: len(receipts(out)) >= 2)
        driver.kill()
    before = len(receipts(out))
    assert before < PARTS
    done = subprocess.run([*line, "--resume"], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "FID" in done.stdout
    case.check(out)
    # Nothing is left to be done, and no cluster is asked.
    again = subprocess.run([*line, "--resume"], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    case.check(out)


def test_an_address_where_nobody_is(case: Case, cli: Cli) -> None:
    given = words({**case.given, "output": case.folder / "nobody"})
    done = cli("evaluate", *given, "--on", "ray://127.0.0.1:9")
    assert done.returncode == 3 and "cannot be reached" in done.stderr, done.stderr
