"""FID-Inception with seeded weights of He's scale, and bundles of it: the full network's shape and cost, numbers that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import dpar_export
import numpy as np

SHAPES = Path(__file__).resolve().parents[2] / "fixtures" / "metrics" / "inception_state_dict.json"


def write_weights(path: Path, seed: int = 0) -> None:
    """Writes the state dict as safetensors."""
    shapes: dict[str, list[int]] = json.loads(SHAPES.read_text())
    draw, header, data = np.random.default_rng(seed), {}, []
    at = 0
    for name, shape in sorted(shapes.items()):
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith(("running_var", "bn.weight")):
            values = draw.uniform(0.5, 1.5, shape)
        elif name.endswith("bias") or name.endswith("running_mean"):
            values = draw.uniform(-0.1, 0.1, shape)
        else:
            values = draw.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        array = values.astype("<f4")
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
        data.append(array)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in data:
            file.write(array.tobytes())


def export(folder: Path, seed: int = 0) -> Path:
    """Makes the extractor bundle `inception` in a folder."""
    weights, out = folder / "inception.safetensors", folder / "inception"
    write_weights(weights, seed)
    dpar_export.export(weights, out, component="inception")
    weights.unlink()
    return out
