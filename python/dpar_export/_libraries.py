"""Where the shared libraries of engines are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

#: What says where ONNX Runtime is, to this package and to the command line.
VARIABLE = "ORT_DYLIB_PATH"


def installed_onnxruntime() -> str | None:
    """The library in the Python package `onnxruntime`, if that is installed. The package is not imported."""
    try:
        spec = importlib.util.find_spec("onnxruntime")
    except (ImportError, ValueError):
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        for pattern in ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll"):
            for file in sorted((Path(folder) / "capi").glob(pattern)):
                if "providers" not in file.name:
                    return str(file)
    return None


def find() -> None:
    """Lets the engine look in the installed package first, unless the user said where the library is."""
    # ONNX Runtime sends telemetry unless this is set before it is loaded.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if not os.environ.get(VARIABLE):
        found = installed_onnxruntime()
        if found is not None:
            os.environ[VARIABLE] = found
