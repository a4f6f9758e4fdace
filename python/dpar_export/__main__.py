"""The command line: `python -m dpar_export`, and the console script `dpar-export`."""

from __future__ import annotations

import sys

from dpar_export import _native


def main() -> int:
    """Runs the command line with this process's arguments and returns its exit code."""
    words = sys.argv[1:]
    if "evaluate" in words and not {"-h", "--help"} & set(words):
        if any(word.partition("=")[0] == "--on" for word in words):
            # Ray is Python's: the driver is here, what it gives out is the program's.
            from dpar_export import cluster

            return cluster.main(words)
    return _native.main([sys.executable, "-m", "dpar_export"], words)


if __name__ == "__main__":
    sys.exit(main())
