"""The command line: `python -m dpar_export`, and the console script `dpar-export`."""

from __future__ import annotations

import sys

from dpar_export import _native


def main() -> int:
    """Runs the command line with this process's arguments and returns its exit code."""
    return _native.main([sys.executable, "-m", "dpar_export"], sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
