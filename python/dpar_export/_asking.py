"""What is asked of the loop, as plain values."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpar_export._errors import InputError

Sampler = Literal["gumbel", "cdf"]
Schedule = Literal["lockstep", "patch", "continuous", "rolling"]


def drawing(**asking: Any) -> dict[str, Any]:
    """Plain values for the loop; numbers of numpy become Python's."""
    classes = asking["classes"]
    if classes is not None:
        asking["classes"] = [int(c) for c in integers("classes", list(classes), 1)]
    for name, most in (("num", 2**64 - 1), ("seed", 2**64 - 1), ("first", 2**64 - 1), ("top_k", 2**63)):
        if asking[name] is not None:
            asking[name] = whole(name, asking[name], most)
    if asking["num"] == 0:
        raise InputError("num is at least 1")
    return asking


def whole(name: str, value: int, most: int) -> int:
    """A whole number from 0 to `most`, as Python's."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= value <= most:
        raise InputError(f"{name} is a whole number from 0 to {most}, not {value!r}")
    return int(value)


def integers(name: str, values: ArrayLike, axes: int) -> NDArray[np.int64]:
    """Whole numbers with so many axes."""
    array = np.asarray(values)
    if array.ndim != axes:
        raise InputError(f"{name} has {array.ndim} axes, not {axes}")
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{name} is {array.dtype}: it holds whole numbers")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise InputError(f"{name} holds {array.max()}, which is too large")
    return np.ascontiguousarray(array, dtype=np.int64)
