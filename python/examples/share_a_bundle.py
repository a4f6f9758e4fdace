"""Threads that ask one scheduler for images: they are decoded in one batch.

    python share_a_bundle.py BUNDLE
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dpar_export


def main(folder: Path) -> int:
    """Returns what the process ends with."""
    try:
        with dpar_export.open(folder, threads=2) as bundle, bundle.scheduler(rows=4) as scheduler:

            def request(seed: int) -> str:
                # A job that is left by an exception gives its rows up.
                with scheduler.submit(num=1, seed=seed, cfg_scale=2.0) as job:
                    for event in job:
                        match event:
                            case dpar_export.Image(class_label=label, steps=steps):
                                return f"seed {seed}, class {label}: {steps} steps for {bundle.tokens} tokens"
                return "nothing"

            with ThreadPoolExecutor(4) as threads:
                for line in threads.map(request, range(4)):
                    print(line)
            for graph in scheduler.stats()["graphs"]:
                print(f"{graph['graph']}: {graph['rows'] / max(graph['calls'], 1):.1f} rows in a call")
    except dpar_export.DparError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
