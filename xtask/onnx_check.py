"""Checks ONNX files with the reference tooling: `onnx_check.py FOLDER...`, run by `cargo xtask onnx-check`.

Every `.onnx` file below a folder must pass `onnx.checker` with `full_check`, and strict shape inference with data
propagation must give every graph output a rank and an element type. Exit codes: 0 all pass, 1 one fails, 2 usage.
"""

import pathlib
import sys

import onnx
from onnx import shape_inference


def check(path):
    onnx.checker.check_model(str(path), full_check=True)
    # Shapes do not depend on the weights' bytes, and a model with external data may be larger than protobuf allows.
    model = onnx.load(str(path), load_external_data=False)
    inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    for output in inferred.graph.output:
        tensor = output.type.tensor_type
        if not tensor.elem_type or not tensor.HasField("shape"):
            raise ValueError(f"output {output.name!r} has no inferred type and shape")
    return len(inferred.graph.node)


def main(folders):
    if not folders:
        print("usage: onnx_check.py FOLDER...", file=sys.stderr)
        return 2
    failed = 0
    for folder in map(pathlib.Path, folders):
        paths = sorted(folder.rglob("*.onnx"))
        if not paths:
            print(f"{folder}: no .onnx file", file=sys.stderr)
            failed += 1
        for path in paths:
            try:
                print(f"{path}: ok, {check(path)} nodes")
            except Exception as e:  # every way to fail is a failed check, and the next file is still checked
                print(f"{path}: {type(e).__name__}: {e}", file=sys.stderr)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
