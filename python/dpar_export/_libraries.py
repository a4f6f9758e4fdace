"""Where the shared libraries of engines are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

#: Engines whose library another package may bring: what says where it is, to this package and to the command line.
ONNXRUNTIME, TENSORRT = "ORT_DYLIB_PATH", "DPAR_TRT_LIB"


def package_folders(name: str) -> list[Path]:
    """Where a package is installed. It is not imported."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def installed_onnxruntime() -> str | None:
    """The library in the Python package `onnxruntime`, if that is installed."""
    for folder in package_folders("onnxruntime"):
        for pattern in ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll"):
            for file in sorted((folder / "capi").glob(pattern)):
                if "providers" not in file.name:
                    return str(file)
    return None


def installed_tensorrt() -> str | None:
    """The folder of libraries in the Python package `tensorrt-rtx-cu12-libs`, if that is installed."""
    for folder in package_folders("tensorrt_rtx_libs"):
        if any(folder.glob("libtensorrt_rtx.so*")):
            return str(folder)
    return None


def find() -> None:
    """Lets engines look in the installed packages first, unless the user said where their libraries are."""
    # ONNX Runtime sends telemetry unless this is set before it is loaded.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for variable, installed in ((ONNXRUNTIME, installed_onnxruntime), (TENSORRT, installed_tensorrt)):
        if not os.environ.get(variable):
            found = installed()
            if found is not None:
                os.environ[variable] = found
