"""The protocol of 50,000 images on a Ray of this machine: generate, a network of FID-Inception's shape, all metrics, shards = whole.

    rehearse.py FOLDER --images 50000 --workers 2

Samples are drawn by emoji32, the trained system of the fixtures (64 tokens, 32 pixels); references are as many images that it draws
from another seed. Weights of the network are seeded: the numbers mean nothing, what they cost does. `cargo xtask rehearse` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dpar_export
import numpy as np
from dpar_export import cluster
from dpar_export._command import words

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python" / "tests"))

import seeded_inception  # noqa: E402

MB = 1e6
#: What `cargo xtask setup` fetches; whoever named another library gets that.
ONNXRUNTIME = ROOT / "third_party" / "onnxruntime" / "libonnxruntime.so"


def size(path: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def spread(out: Path, workers: int, given: dict[str, Any]) -> dict[str, Any]:
    """An evaluation on Ray: its seconds, and what its receipts say when the last part is there."""
    parts = Path(f"{out}.parts")
    seen: dict[str, Any] = {}
    begun = time.monotonic()

    def progress(done: int, of: int) -> None:
        print(f"\r{done}/{of}", end="", file=sys.stderr)
        if done == of:
            receipts = [json.loads(p.read_text()) for p in parts.glob("[0-9]*/receipt.json")]
            seen["memory"] = max(r["memory"] for r in receipts)
            seen["parts"] = len(receipts)
            seen["bytes"] = size(parts)
            seen["features"] = time.monotonic() - begun

    cluster.evaluate(out=out, workers=workers, progress=progress, **given)
    print(file=sys.stderr)
    return {**seen, "seconds": time.monotonic() - begun, "driver": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="is made, and stays")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--chunk", type=int, default=256)
    asked = parser.parse_args()
    if ONNXRUNTIME.is_file():
        os.environ.setdefault("ORT_DYLIB_PATH", str(ONNXRUNTIME))
    folder: Path = asked.folder
    folder.mkdir(parents=True)
    bundle = folder / "emoji32"
    dpar_export.export(ROOT / "fixtures" / "emoji32" / "dpar", bundle)
    common: dict[str, Any] = {
        "bundle": bundle, "num": asked.images, "extractor": seeded_inception.export(folder), "engine": "ort",
        "chunk": asked.chunk, "kid_subset_size": min(1000, asked.images // 2),
    }  # fmt: skip

    # References: features and statistics of another seed, in the layout of a reference file.
    real = np.load(ROOT / "fixtures" / "emoji32" / "real_images.npz")["arr_0"][:16]
    np.savez(folder / "few.npz", real)
    few = {**common, "kid_subset_size": 8, "reference": folder / "few.npz", "seed": 1}
    first = spread(folder / "references", asked.workers, few)
    rows = np.memmap(folder / "references" / "samples" / "pool_3.f32", np.float32).reshape(asked.images, 2048)
    with np.load(folder / "references" / "statistics.npz") as statistics:
        np.savez(folder / "reference.npz", pool_3=rows, **{name: statistics[name] for name in statistics.files})

    given = {**common, "reference": folder / "reference.npz", "seed": 0}
    found = spread(folder / "samples", asked.workers, given)
    begun = time.monotonic()
    line = [sys.executable, "-m", "dpar_export", "evaluate", *words({**given, "output": folder / "whole"}), "--quiet"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as one:
        _, status, used = os.wait4(one.pid, 0)
        one.returncode = os.waitstatus_to_exitcode(status)
    alone = time.monotonic() - begun
    ours, theirs = ((folder / name / "metrics.json").read_bytes() for name in ("samples", "whole"))

    metrics = json.loads(ours)["metrics"]
    print(f"{asked.images} images against {asked.images}, {asked.workers} workers of one thread, {found['parts']} parts")
    print("| what | |\n|---|---|")
    print(f"| references, by the workers | {first['seconds']:.0f} s |")
    print(f"| samples, by the workers | {found['features']:.0f} s |")
    print(f"| merge and metrics, in the driver | {found['seconds'] - found['features']:.0f} s |")
    print(f"| the same in one process, {os.cpu_count()} threads | {alone:.0f} s |")
    print(f"| most memory of a worker's process | {found['memory'] / MB:.0f} MB |")
    print(f"| most memory of the driver, Ray's client with it | {found['driver'] / MB:.0f} MB |")
    print(f"| most memory of the one process | {used.ru_maxrss * 1024 / MB:.0f} MB |")
    print(f"| parts on the disk until they are joined | {found['bytes'] / MB:.0f} MB |")
    print(f"| output folder | {size(folder / 'samples') / MB:.0f} MB |")
    print(f"| reference file | {size(folder / 'reference.npz') / MB:.0f} MB |")
    print(f"| metrics | {', '.join(sorted(metrics))} |")
    print(f"| shards = whole | {'yes, to the byte' if ours == theirs else 'NO'} |")
    return 0 if ours == theirs and one.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
