"""Real bundles of the fixtures on real engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dpar_export
import pytest

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
ONNXRUNTIME = ROOT / "third_party" / "onnxruntime" / "libonnxruntime.so"

# A build service may start its work with Ctrl-C ignored, which children inherit: the tests of it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

if ONNXRUNTIME.is_file():
    os.environ.setdefault("ORT_DYLIB_PATH", str(ONNXRUNTIME))

#: The engines of every build, as far as this one has them.
ENGINES = [name for name in dpar_export.engines() if name in ("tract", "ort")]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained DPAR: 64 tokens of 1,024 codes, 9 classes, 32 pixels."""
    out = tmp_path_factory.mktemp("bundles") / "emoji32"
    dpar_export.export(FIXTURES / "emoji32" / "dpar", out)
    return out


@pytest.fixture(scope="session")
def llamagen_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained LlamaGen of the same images."""
    out = tmp_path_factory.mktemp("bundles") / "llamagen"
    folder = FIXTURES / "emoji32" / "llamagen"
    dpar_export.export(folder / "c2i_emoji32.pt", out, config=folder / "config.yaml")
    return out


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cli() -> Cli:
    """The command line, in a process of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "dpar_export", *(str(a) for a in arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)

    return run
