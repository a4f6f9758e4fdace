"""Failures: their kinds, hints and exit codes are the command line's."""

from __future__ import annotations

import logging
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dpar_export
import numpy as np
import pytest
from conftest import FIXTURES, Cli


def test_each_kind_has_its_class_and_exit_code(bundle_path: Path, tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(dpar_export.InputError) as caught:
        dpar_export.open(tmp_path / "nothing")
    assert caught.value.kind == "input" and caught.value.exit_code == 2
    done = cli("generate", tmp_path / "nothing", "--num", 1, "-o", tmp_path / "out")
    assert done.returncode == 2 and caught.value.args[0] in done.stderr

    damaged = tmp_path / "damaged"
    shutil.copytree(bundle_path, damaged)
    file = next((damaged / "onnx").glob("*.onnx"))
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(dpar_export.IntegrityError) as damage:
        dpar_export.open(damaged)
    assert damage.value.exit_code == 5 and file.name in str(damage.value)
    assert cli("inspect", damaged).returncode == 5

    with pytest.raises(dpar_export.UnavailableError) as absent:
        dpar_export.open(bundle_path, engine="ort", ort_lib=tmp_path / "libnone.so")
    assert absent.value.exit_code == 3 and absent.value.hint


def test_every_error_is_one_and_survives_pickling(tmp_path: Path) -> None:
    with pytest.raises(dpar_export.DparError) as caught:
        dpar_export.open(tmp_path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value) and str(again) == str(caught.value)
    assert (again.hint, again.details, again.exit_code) == (
        caught.value.hint,
        caught.value.details,
        caught.value.exit_code,
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "classes or num"),
        ({"classes": [1], "num": 1}, "classes or num"),
        ({"classes": [99]}, "class 99"),
        ({"classes": [-1]}, "class -1"),
        ({"classes": [1.5]}, "whole numbers"),
        ({"num": 0}, "at least 1"),
        ({"num": 10**12}, "at most"),
        ({"num": 1, "seed": -1}, "seed is a whole number"),
        ({"num": 1, "seed": True}, "seed is a whole number"),
        ({"num": 1, "batch": 0}, "batch is 1 to 256"),
        ({"num": 1, "cfg_scale": float("nan")}, "guidance scale"),
        ({"num": 1, "cfg_interval": 3}, "without guidance"),
        ({"num": 1, "temperature": -1.0}, "temperature"),
        ({"num": 1, "greedy": True, "top_k": 5}, "no effect"),
        ({"num": 1, "sampler": "nucleus"}, "gumbel or cdf"),
        ({"num": 1, "schedule": "chaos"}, "schedule is one of"),
        ({"num": 2, "first": 2**64 - 1}, "first is too large"),
    ],
)
def test_what_cannot_be_drawn_is_refused(bundle_path: Path, asked: dict[str, object], said: str) -> None:
    with dpar_export.open(bundle_path) as bundle:
        with pytest.raises(dpar_export.InputError, match=said):
            bundle.generate(**asked)  # type: ignore[arg-type]
        with pytest.raises(dpar_export.InputError, match=said):
            bundle.stream(**asked)  # type: ignore[arg-type]


def test_arrays_that_do_not_fit_are_refused(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle:
        t, size = bundle.tokens, bundle.image_size
        for tokens in (np.zeros(t, np.int64), np.zeros((1, t - 1), np.int64), np.zeros((1, t)), np.full((1, t), 10**9)):
            with pytest.raises(dpar_export.InputError):
                bundle.decode(tokens)
        for images in (
            np.zeros((size, size, 3), np.uint8),
            np.zeros((1, size, size + 1, 3), np.uint8),
            np.zeros((1, 3, size, size), np.int32),
            np.full((1, 3, size, size), 7.0, np.float32),
            np.full((1, 3, size, size), np.nan),
        ):
            with pytest.raises(dpar_export.InputError):
                bundle.encode(images)
        with pytest.raises(dpar_export.InputError, match="class labels"):
            bundle.score(np.zeros((2, t), np.int64), [0])
        with pytest.raises(dpar_export.InputError, match="patch_lengths"):
            bundle.score(np.zeros((1, t), np.int64), [0], patch_lengths=[[1, 0, t - 1]])
        # Their sum is that of a row that fits, in numbers that wrap.
        with pytest.raises(dpar_export.InputError, match="patch"):
            bundle.score(np.zeros((1, t), np.int64), [0], patch_lengths=[[2**63 - 1, 2**63 - 1, 2, t]])
        for threads in (0, -1, 2.5, True):
            with pytest.raises(dpar_export.InputError, match="threads"):
                dpar_export.open(bundle_path, threads=threads)  # type: ignore[arg-type]
        with pytest.raises(dpar_export.InputError, match="no engine"):
            dpar_export.open(bundle_path, engine="none")


def test_a_mismatch_can_be_an_exception(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle:
        good = bundle.verify(FIXTURES / "emoji32", probes=False)
        good.raise_for_verdict()
        assert good.passed and good["verdict"] == "pass"
    with dpar_export.open(bundle_path, threshold=3.0) as other:
        found = other.verify(FIXTURES / "emoji32", probes=False)
        assert found.exit_code == 1
        with pytest.raises(dpar_export.MismatchError) as caught:
            found.raise_for_verdict()
        assert caught.value.exit_code == 1 and caught.value.details


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, dpar_export.MismatchError),
        (2, dpar_export.InputError),
        (3, dpar_export.UnavailableError),
        (4, dpar_export.InconclusiveError),
        (5, dpar_export.IntegrityError),
    ],
)
def test_every_exit_code_of_a_document_has_its_exception(code: int, kind: type[dpar_export.DparError]) -> None:
    found = dpar_export.Document({"verdict": "incomplete"}, code)
    with pytest.raises(kind) as caught:
        found.raise_for_verdict()
    assert type(caught.value) is kind and caught.value.exit_code == code


def test_a_replaced_bundle_is_not_verified(bundle_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_path, copy)
    with dpar_export.open(copy) as bundle:
        dpar_export.export(FIXTURES / "dpar-small" / "dpar", copy, force=True)
        with pytest.raises(dpar_export.IntegrityError):
            bundle.generate(num=1)
        with pytest.raises(dpar_export.DparError):
            bundle.verify(FIXTURES / "dpar-small", probes=False)


def test_warnings_go_to_logging(bundle_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dpar_export"), dpar_export.open(bundle_path) as bundle:
        bundle.generate(num=1, temperature=0.0, images=False)
    assert any("logits are divided by" in record.message for record in caplog.records)


def test_ctrl_c_ends_work_and_the_next_call_is_right(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path, threads=1) as bundle:
        expected = bundle.generate(num=1)
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            bundle.generate(num=4000, batch=8, images=False)
        timer.join()
        assert time.monotonic() - start < 30
        again = bundle.generate(num=1)
        assert again.images is not None and expected.images is not None
        assert again.images.tobytes() == expected.images.tobytes()


def test_ctrl_c_ends_a_command(bundle_path: Path, tmp_path: Path) -> None:
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        dpar_export.command("generate", bundle_path, num=4000, output=tmp_path / "out", no_images=True)
    timer.join()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_command_line(bundle_path: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dpar_export", "generate", str(bundle_path), "--num", "4000", "-o", str(tmp_path / "o")]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    # It says nothing while it works: the folder that it writes is there from the beginning.
    end = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert list(tmp_path.iterdir()) == []
