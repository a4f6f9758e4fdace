"""The rest: scoring, codes, pictures, documents, the command line."""

from __future__ import annotations

import base64
import os
import re
import zlib
from pathlib import Path

import dpar_export
import numpy as np
import pytest
from conftest import FIXTURES, ROOT, Cli

TENSORRT = ROOT / "third_party" / "tensorrt-rtx"


def test_scores_are_those_of_the_command_line(bundle_path: Path, engine: str, cli: Cli, tmp_path: Path) -> None:
    with dpar_export.open(bundle_path, engine=engine, threads=1) as bundle:
        samples = bundle.generate(num=3, images=False)
        scores = bundle.score(samples.tokens, samples.class_labels, batch=2)
        given = bundle.score(samples.tokens, samples.class_labels, patch_lengths=samples.patch_lengths, batch=2)
    assert scores.entropy is not None and scores.patch_lengths is not None
    assert scores.logits.shape == (3, 64, 1024) and scores.logits.dtype == np.float32
    np.testing.assert_array_equal(scores.patch_lengths, samples.patch_lengths)
    np.testing.assert_array_equal(scores.logits, given.logits)
    np.testing.assert_allclose(scores.entropy[:, :-1], samples.entropy[:, 1:], atol=1e-4)
    np.savez(tmp_path / "in.npz", tokens=samples.tokens, class_labels=samples.class_labels)
    done = cli(
        "score", bundle_path, "--inputs", tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--engine", engine,
        "--batch", 2, "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(out["logits"], scores.logits)


def test_codes_and_images(bundle_path: Path, engine: str) -> None:
    with dpar_export.open(bundle_path, engine=engine) as bundle:
        samples = bundle.generate(num=3, cfg_scale=2.0)
        assert samples.images is not None
        images = bundle.decode(samples.tokens)
        assert images.tobytes() == samples.images.tobytes()
        codes = bundle.encode(images, batch=2)
        floats = (images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5)) - np.float32(1)
        np.testing.assert_array_equal(bundle.encode(floats, batch=2), codes)
        assert codes.shape == samples.tokens.shape and codes.dtype == np.int64
        assert bundle.decode(np.zeros((0, 64), np.int64)).shape == (0, 32, 32, 3)


def test_pictures(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle:
        samples = bundle.generate(num=18, cfg_scale=2.0)
    sheet = samples.grid()
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3
    assert not np.array_equal(samples.grid(patches=True, labels=["x"] * 18), sheet)
    assert samples.grid(columns=18, scale=1).shape[1] > samples.grid(columns=1, scale=1).shape[1]
    with pytest.raises(dpar_export.InputError, match="labels"):
        samples.grid(labels=["one"])
    page = samples._repr_html_()
    assert "18 images" in page and "first 16" in page
    # Offline: everything is in the page.
    assert re.findall(r'(?:src|href)="([^"]{0,22})', page) == ["data:image/png;base64,"]
    png = base64.b64decode(page.split("base64,")[1].split('"')[0])
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and zlib.crc32(png[12:29]) == int.from_bytes(png[29:33], "big")
    assert "Samples(18 images of 64 tokens" in repr(samples)


def test_facts(bundle_path: Path) -> None:
    with dpar_export.open(bundle_path) as bundle:
        assert (bundle.num_classes, bundle.vocab, bundle.tokens, bundle.image_size) == (9, 1024, 64, 32)
        assert len(bundle.manifest_sha256) == 64 and bundle.manifest["name"]
        assert bundle.patch_rule["threshold"] == bundle.manifest["patch_rule"]["threshold"] == 4.35
        assert "emoji32" in repr(bundle) and not bundle.closed
    assert bundle.closed and "closed" in repr(bundle)
    with dpar_export.open(bundle_path, threshold=5.0) as bundle:
        assert bundle.patch_rule["threshold"] == 5.0
    with pytest.raises(dpar_export.InputError):
        dpar_export.open(bundle_path, max_patch_length=1000)


def test_export_metrics_and_evaluate(tmp_path: Path, bundle_path: Path) -> None:
    done = dpar_export.export(FIXTURES / "dpar-small" / "dpar", tmp_path / "small")
    assert done.passed and done["manifest"]["files"] and (tmp_path / "small" / "manifest.json").is_file()
    with pytest.raises(dpar_export.InputError):
        dpar_export.export(FIXTURES / "dpar-small" / "dpar", tmp_path / "small")
    assert "system" in dpar_export.export(FIXTURES / "dpar-small" / "dpar", tmp_path / "x", dry_run=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", pool_3=rng.normal(size=(64, 8)).astype(np.float32))
    found = dpar_export.metrics(tmp_path / "a.npz", tmp_path / "b.npz", kid_subset_size=32)
    assert found["metrics"] and found["samples"]["images"] == 64
    extractor = FIXTURES / "features" / "tiny.onnx"
    evaluated = dpar_export.evaluate(
        bundle=bundle_path, num=8, reference=FIXTURES / "emoji32" / "real_images.npz", extractor=extractor,
        input_size=16, out=tmp_path / "evaluated",
    )  # fmt: skip
    assert evaluated.passed and (tmp_path / "evaluated" / "metrics.json").is_file()


def test_any_command_is_a_function(bundle_path: Path) -> None:
    assert dpar_export.command("inspect", bundle_path)["manifest"]
    assert dpar_export.command("doctor").exit_code == 0
    assert "complete" in dpar_export.command("completions", "bash")["text"]
    with pytest.raises(dpar_export.InputError, match="unexpected argument"):
        dpar_export.command("inspect", bundle_path, nonsense=1)
    with pytest.raises(dpar_export.InputError, match="process"):
        dpar_export.command("bench", bundle_path)
    parity = dpar_export.command("parity", bundle_path, engines=["tract", "ort"], num=2, cfg_scale=1.3)
    assert parity.passed, parity
    assert parity["settings"]["cfg_scale"] == 1.3


def test_the_command_line_is_whole(cli: Cli, bundle_path: Path, tmp_path: Path) -> None:
    for command in ("generate", "verify", "evaluate", "bench", "bisect", "reproduce"):
        assert cli(command, "--help").returncode == 0
    assert cli("--version").stdout.split() == ["dpar-export", dpar_export.__version__]
    assert cli("nonsense").returncode == 2
    # A case is measured in a process that is started as this one was.
    done = cli("bench", bundle_path, "--rounds", 1, "--json")
    assert done.returncode == 0, done.stderr


def test_the_engines(tmp_path: Path) -> None:
    assert dpar_export.engines()[:2] == ["tract", "ort"]


@pytest.mark.skipif("tensorrt" not in dpar_export.engines(), reason="built without TensorRT")
@pytest.mark.skipif(not TENSORRT.is_dir(), reason="`cargo xtask setup` fetches TensorRT-RTX")
def test_libraries_of_an_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    # As the extra `tensorrt` installs them.
    installed = tmp_path / "tensorrt_rtx_libs"
    installed.symlink_to(TENSORRT)
    monkeypatch.delenv("DPAR_TRT_LIB", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    doctor = cli("doctor", "--engine", "tensorrt", "--json")
    assert str(installed) in doctor.stdout, doctor.stdout + doctor.stderr
    # Without a driver it cannot run, and says so; with one it can.
    assert doctor.returncode in (0, 3), doctor.stderr
    monkeypatch.setenv("DPAR_TRT_LIB", str(tmp_path))
    doctor = cli("doctor", "--engine", "tensorrt", "--json")
    assert doctor.returncode == 3 and str(installed) not in doctor.stdout, doctor.stdout + doctor.stderr
