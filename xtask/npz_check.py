"""Reads what `generate` wrote as guided-diffusion's evaluator does: `npz_check.py FOLDER COPY.npz`, run by `cargo xtask
npz-check`. COPY.npz receives numpy's own file of the same samples. Exit codes: 0 all right, 1 not, 2 usage.
"""

import pathlib
import sys

import numpy as np

# Numbers of the patch rule that ran, one of each.
RULE = {"threshold", "max_patch_length", "patch_size"}


def main(arguments):
    if len(arguments) != 2:
        print("usage: npz_check.py FOLDER COPY.npz", file=sys.stderr)
        return 2
    folder, copy = map(pathlib.Path, arguments)
    samples = np.load(folder / "samples.npz", allow_pickle=False)
    trace = np.load(folder / "trace.npz", allow_pickle=False)
    images, lengths = samples["arr_0"], trace["patch_lengths"]
    count = len(list(folder.glob("[0-9]*.png")))
    checks = {
        "arr_0 is u8 [N, H, W, 3], row-major": images.dtype == np.uint8
        and images.ndim == 4
        and images.shape[3] == 3
        and images.flags.c_contiguous,
        "as many PNGs as images": count == len(images) > 0,
        "the images differ": images.std() > 0,
        "one row of the trace an image": all(
            len(trace[name]) == (1 if name in RULE else len(images)) for name in trace.files
        ),
        "patches cover the tokens": (lengths.sum(1) == trace["tokens"].shape[1]).all(),
        "entropies are f32, NaN at the first token only": trace["entropy"].dtype == np.float32
        and (np.isnan(trace["entropy"]).sum(1) == 1).all(),
    }
    for what, right in checks.items():
        print(f"{what}: {'ok' if right else 'NO'}")
    np.savez_compressed(copy, arr_0=images, arr_1=trace["class_labels"])
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
