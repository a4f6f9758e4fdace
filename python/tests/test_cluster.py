"""What machines of a cluster do, and what is kept of it: without Ray, whose own tests are in test_ray.py."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dpar_export
import pytest
from conftest import FIXTURES, Cli
from dpar_export import _ray, cluster
from dpar_export._command import call, words
from dpar_export._parts import Parts, discard
from dpar_export._ray import _cut
from dpar_export._worker import Input, Lost, Part, Task, Worker, digest, kept_inputs

EXTRACTOR = FIXTURES / "features" / "tiny.onnx"
REFERENCE = FIXTURES / "emoji32" / "real_images.npz"
#: 12 images in three parts.
OPTIONS: dict[str, Any] = {
    "num": 12, "seed": 3, "reference": REFERENCE, "extractor": EXTRACTOR, "input_size": 16, "engine": "tract",
    "chunk": 4, "threads": 1,
}  # fmt: skip


def plan(bundle: Path, out: Path, **more: object) -> dict[str, Any]:
    """What a driver is told before it gives out parts."""
    return call(["evaluate", *words({**OPTIONS, "bundle": bundle, "output": out, "on": "ray", **more})])


def task(bundle: Path, key: str, copied: bool = False) -> Task:
    own = ("bundle", "extractor", "threads")
    given = words({name: value for name, value in OPTIONS.items() if name not in own})
    inputs = [Input("bundle", str(bundle), digest(bundle)), Input("extractor", str(EXTRACTOR), digest(EXTRACTOR))]
    return Task(("evaluate", *given), os.getcwd(), tuple(inputs), copied, 3, 1, key)


def test_parts_join_to_what_one_process_finds(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    whole = dpar_export.command("evaluate", bundle=bundle_path, output=tmp_path / "whole", **OPTIONS)
    out, parts = tmp_path / "out", tmp_path / "out.parts"
    found = plan(bundle_path, out)
    assert (found["shards"], found["images"], found["stored"]) == (3, 12, 0)
    work = task(bundle_path, found["key"], copied=True)
    worker = Worker(work)
    # All is sent, as to a machine that has nothing.
    assert worker.missing() == ["bundle", "extractor"]
    for wanted in work.inputs:
        for name, piece in _cut(Path(wanted.path)):
            worker.keep(wanted.option, name, piece)
    who = worker.open()
    with Parts(parts, found["key"], 3) as store:
        assert store.missing() == [1, 2, 3]
        second = worker.part(2)
        assert second.images == 4 and second.memory > 1 << 20
        os.kill(who["process"], signal.SIGKILL)
        with pytest.raises(Lost, match="-9"):
            worker.part(3)
        assert store.add(second) and store.add(worker.part(3))
        again = worker.part(2)
        assert not store.add(again) and again.sha256 == second.sha256
        # What a disk changed is done again, by the same worker too.
        answer = worker._answer

        def changed() -> dict[str, Any]:
            found, file = answer(), worker._folder / "part-1" / "samples" / "pool_3.f32"
            file.write_bytes(b"?" + file.read_bytes()[1:])
            return found

        with monkeypatch.context() as there:
            there.setattr(worker, "_answer", changed)
            with pytest.raises(Lost, match=r"pool_3\.f32 of part 1 changed on the disk"):
                worker.part(1)
        assert worker.part(1).images == 4
        with pytest.raises(dpar_export.InputError, match="in use"), Parts(parts, found["key"], 3):
            pass
    # Another driver, after something was damaged.
    damaged = parts / "3" / "samples" / "pool_3.f32"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with Parts(parts, found["key"], 3) as store:
        assert store.missing() == [1, 3]
        for number in store.missing():
            store.add(worker.part(number))
        folders = [store.folder(n) for n in (3, 1, 2)]
    worker.close()
    joined = dpar_export.command("evaluate", bundle=bundle_path, output=out, merge=folders, resume=True, **OPTIONS)
    assert joined == whole
    assert (out / "metrics.json").read_bytes() == (tmp_path / "whole" / "metrics.json").read_bytes()
    assert plan(bundle_path, out, resume=True)["stored"] == 12
    # What the merge would refuse is refused before any work.
    plan(bundle_path, tmp_path / "looked")
    (tmp_path / "looked" / "looks.json").write_text("{}")
    with pytest.raises(dpar_export.InputError, match="planned looks"):
        plan(bundle_path, tmp_path / "looked", resume=True, compare=out / "metrics.json")


def test_what_differs_between_machines_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    key = plan(bundle_path, tmp_path / "out")["key"]
    other = tmp_path / "bundle"
    shutil.copytree(bundle_path, other)
    work = task(other, key)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(dpar_export.IntegrityError, match="is not the driver's") as caught:
        Worker(work).missing()
    assert caught.value.exit_code == 5
    unlike = Worker(task(bundle_path, "0" * 64))
    assert unlike.missing() == []
    with pytest.raises(dpar_export.IntegrityError, match="other features"):
        unlike.open()
    unlike.close()
    damaged = next((other / "onnx").glob("*.onnx"))
    damaged.write_bytes(damaged.read_bytes() + b"x")
    broken = Worker(task(other, key))
    assert broken.missing() == []
    with pytest.raises(dpar_export.IntegrityError, match=damaged.name):
        broken.open()
    broken.close()


def test_the_command_line_needs_ray_and_says_so(
    bundle_path: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = words({**OPTIONS, "bundle": bundle_path, "output": tmp_path / "out"})
    for ray, said in (("raise ImportError('none here')", "none here"), ("__version__ = '1.13.0'", "1.13.0 is too old")):
        (tmp_path / "ray.py").write_text(ray)
        with monkeypatch.context() as here:
            here.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
            done = cli("evaluate", *given, "--on", "ray", "--resume")
        assert done.returncode == 3 and said in done.stderr and "hint: pip" in done.stderr, done.stderr
    done = cli("evaluate", *given, "--on=slurm", "--resume")
    assert done.returncode == 2 and "ray://HOST:PORT" in done.stderr
    with pytest.raises(dpar_export.InputError, match="cluster"):
        dpar_export.command("evaluate", on="ray")


def test_words_of_the_driver_are_not_the_workers() -> None:
    given = ["evaluate", "--on", "ray", "-oout", "--num=4", "--workers=2", "--reference", "r", "-q", "--output", "x"]
    assert cluster.without(given, {"--on", "--workers", "--output", "-o"}, {"-q"}) == [
        "evaluate", "--num=4", "--reference", "r",
    ]  # fmt: skip


def test_a_folder_of_somebody_else_stays(tmp_path: Path) -> None:
    own = tmp_path / "run.parts" / "1" / "notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine", encoding="utf-8")
    with pytest.raises(dpar_export.InputError, match="holds something else"), Parts(tmp_path / "run.parts", "key", 1):
        pass
    discard(tmp_path / "run.parts")
    assert own.read_text(encoding="utf-8") == "mine"
    with Parts(tmp_path / "new.parts", "key", 1):
        pass
    with Parts(tmp_path / "new.parts", "key", 1):
        pass
    discard(tmp_path / "new.parts")
    assert not (tmp_path / "new.parts").exists()


def test_workers_compare_nothing() -> None:
    given = ["evaluate", "--compare", "m.json", "--resample-distances=20", "--num=4"]
    assert cluster.without(given, cluster._WITH_VALUE, cluster._FLAGS) == ["evaluate", "--num=4"]


def test_what_is_damaged_on_its_way_gets_no_name(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    work = task(bundle_path, "0" * 64, copied=True)
    worker, lost = Worker(work), kept_inputs() / "worker-lost"
    lost.mkdir()
    worker.missing()
    for name, piece in _cut(bundle_path):
        worker.keep("bundle", name, piece[:-1] if name == "config.json" else piece)
    with pytest.raises(dpar_export.IntegrityError, match=r"config\.json"):
        worker.open()
    assert not worker._kept(work.inputs[0]).exists()
    # Another sweeps what nobody holds, and nothing else.
    other = Worker(work)
    assert worker._folder.exists() and not lost.exists()
    for each in (worker, other):
        each.close()
    assert not list(kept_inputs().glob("worker-*"))


def test_what_is_left_of_what_was_sent_is_sent_again(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    work = task(bundle_path, "0" * 64, copied=True)

    def sends() -> list[str]:
        worker = Worker(work)
        missing = worker.missing()
        for wanted in (i for i in work.inputs if i.option in missing):
            for name, piece in _cut(Path(wanted.path)):
                worker.keep(wanted.option, name, piece)
            worker._settle(wanted)
        worker.close()
        return missing

    assert sends() == ["bundle", "extractor"]
    assert sends() == []
    # Somebody tidies the temporary folder; a disk fails.
    bundle, extractor = (kept_inputs() / i.sha256 / Path(i.path).name for i in work.inputs)
    next((bundle / "onnx").glob("*.onnx")).unlink()
    extractor.write_bytes(extractor.read_bytes() + b"x")
    assert sends() == ["bundle", "extractor"]
    assert sends() == []


class RayError(Exception):
    """Of Ray itself."""


class TaskError(RayError):
    """What a method of an actor raised."""

    def __init__(self, cause: Exception | None) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Died(RayError):
    """An actor is gone."""


EXCEPTIONS = SimpleNamespace(
    RayError=RayError, RayTaskError=TaskError, RayActorError=Died, ObjectLostError=Died, OutOfMemoryError=Died
)


class Ray:
    """As much of Ray as a driver needs whose workers do not come to run, or fail."""

    def __init__(self, refuses: bool, failure: Exception | None) -> None:
        self.refuses, self.failure = refuses, failure
        self.exceptions = EXCEPTIONS
        self.asked: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return True

    def options(self, **asked: Any) -> Ray:
        if self.refuses:
            raise ValueError("not that")
        self.asked = asked
        return self

    def remote(self, *_: object) -> Any:
        method = SimpleNamespace(remote=lambda *_: object())
        return self if _ == (Worker,) else SimpleNamespace(missing=method, open=method, close=method)

    def wait(self, refs: list[object], **_: object) -> tuple[list[object], list[object]]:
        return (refs[:1], []) if self.failure else ([], refs)

    def get(self, refs: list[object]) -> list[object]:
        self.opened = not getattr(self, "opened", False)
        if self.opened:
            return [[]]
        if isinstance(self.failure, RayError):
            raise self.failure
        raise TaskError(self.failure)

    def kill(self, _: object) -> None:
        pass


def test_a_driver_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ray, "PATIENCE", 0.0)
    work = Task(("evaluate",), "/", (), False, 3, 1, "key")
    cases: list[tuple[Ray, type[Exception], str]] = [
        (Ray(True, None), dpar_export.InputError, "not that"),
        (Ray(False, None), dpar_export.UnavailableError, "no worker has answered"),
        (Ray(False, Lost("it ended")), dpar_export.RunError, "cannot open what they need: it ended"),
        (Ray(False, OSError("the disk is full")), dpar_export.RunError, "cannot open what they need: the disk is full"),
        (Ray(False, RayError("the store is full")), dpar_export.UnavailableError, "the Ray cluster fails: the store is full"),
    ]
    for there, kind, said in cases:
        monkeypatch.setattr(_ray, "_load", lambda there=there: there)
        with Parts(tmp_path / "parts", "key", 3) as store, pytest.raises(kind, match=said):
            _ray.Driver(work, store, {"memory": 1000.0}, 1).run("ray", None, 12)
    assert there.asked == {"num_cpus": 0, "num_gpus": 0, "memory": 1000, "resources": None}


class Actors:
    """As much of Ray as a driver needs whose workers do what a script says: `does` gives a part, raises, or gives nothing, for one who
    stands still."""

    def __init__(self, does: Callable[[int, int], Part | None]) -> None:
        self.does, self.exceptions, self.hired = does, EXCEPTIONS, 0

    def is_initialized(self) -> bool:
        return True

    def options(self, **_: Any) -> Actors:
        return self

    def remote(self, first: object) -> Any:
        if first is Worker:
            return self
        number, self.hired = self.hired, self.hired + 1

        def asked(answer: Callable[..., Any]) -> Any:
            return SimpleNamespace(remote=lambda *given: lambda: answer(*given))

        return SimpleNamespace(
            missing=asked(lambda: []), open=asked(lambda: {"host": f"host-{number}", "pid": number}),
            part=asked(lambda part: self.does(number, part)), close=asked(lambda: None),
        )  # fmt: skip

    def wait(self, refs: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        self.answers: dict[Any, Any] = {}
        for ref in refs:
            try:
                self.answers[ref] = ref()
            except RayError as error:
                self.answers[ref] = error
            if self.answers[ref] is not None:
                return [ref], []
        return [], refs

    def get(self, refs: list[Any]) -> list[Any]:
        answer = self.answers[refs[-1]]
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    def kill(self, _: object) -> None:
        pass


def test_a_driver_gives_parts_of_lost_and_late_workers_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ray, "LATE", 0.0)
    asked: list[tuple[int, int]] = []
    failed: list[int] = []

    def does(worker: int, part: int) -> Part | None:
        if asked[-1:] != [(worker, part)]:
            asked.append((worker, part))
        if (worker, part) == (1, 2):
            raise Died("the node is gone")
        if (worker, part) == (0, 1):
            # It stands still until another has done its part; then it fails.
            if 1 in store.missing():
                return None
            failed.append(part)
            raise TaskError(dpar_export.IntegrityError("a file changed"))
        if part == 3 and not failed:
            return None
        files = {"pool_3.f32": bytes([part])}
        sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return Part(part, 4, files, sha256, 1, {"host": f"host-{worker}"})

    monkeypatch.setattr(_ray, "_load", lambda: Actors(does))
    work = Task(("evaluate",), "/", (), False, 3, 1, "key")
    told: list[int] = []
    with Parts(tmp_path / "parts", "key", 3) as store:
        _ray.Driver(work, store, {"CPU": 1.0}, 3).run("ray", lambda done, _: told.append(done), 12)
        made = {n: store._receipts[n]["worker"]["host"] for n in (1, 2, 3)}
    # Worker 2 took the part of the lost one, worker 3 came in its place and took the late part; who failed took another one.
    assert made == {1: "host-3", 2: "host-2", 3: "host-0"}, asked
    assert told == [0, 4, 8, 12] and failed == [1]
