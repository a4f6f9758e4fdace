"""Exports a checkpoint, draws images while one watches, and compares the bundle with a reference.

    python first_images.py CHECKPOINT OUT [REFERENCE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import dpar_export
import numpy as np
from numpy.typing import NDArray


def main(checkpoint: Path, out: Path, reference: Path | None) -> int:
    """Returns what the process ends with."""
    try:
        exported = dpar_export.export(checkpoint, out)
        print(f"{out}: {len(exported['manifest']['graphs'])} graphs")
        with dpar_export.open(out, threads=2) as bundle:
            pictures: list[NDArray[np.uint8]] = []
            patches = 0
            with bundle.stream(num=4, seed=0, cfg_scale=2.0) as events:
                for event in events:
                    if isinstance(event, dpar_export.Patch):
                        patches += 1
                    elif isinstance(event, dpar_export.Image) and event.pixels is not None:
                        pictures.append(event.pixels)
                        print(f"image {event.image} of class {event.class_label}: {event.steps} steps")
            print(f"{len(pictures)} images, {patches} patches for {4 * bundle.tokens} tokens")
            if reference is not None:
                bundle.verify(reference).raise_for_verdict()
                print("the bundle agrees with the reference")
    except dpar_export.DparError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) == 4 else None))
