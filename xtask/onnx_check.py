"""Checks ONNX files with the reference tooling: `onnx_check.py FOLDER...`, run by `cargo xtask onnx-check`.

Every `.onnx` file below a folder must pass `onnx.checker` with `full_check`, strict shape inference with data propagation
must give every graph output a rank and an element type, and Polygraphy must load the file with its weights. If
`FOLDER.commands.json` lies beside the folder, it is what `dpar-export --target trt FOLDER --emit-trtexec --json` printed:
Polygraphy's own parser must take its command lines and read the shapes that trtexec is given.
Exit codes: 0 all pass, 1 one fails, 2 usage.
"""

import argparse
import json
import pathlib
import sys

import onnx
from onnx import shape_inference
from polygraphy.backend.onnx import OnnxFromPath
from polygraphy.common import TensorMetadata
from polygraphy.logger import G_LOGGER
from polygraphy.tools.args.backend.trt.config import parse_profile_shapes
from polygraphy.tools.convert import Convert


def check(path):
    onnx.checker.check_model(str(path), full_check=True)
    # Shapes do not depend on the weights' bytes, and a model with external data may be larger than protobuf allows.
    model = onnx.load(str(path), load_external_data=False)
    inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    for output in inferred.graph.output:
        tensor = output.type.tensor_type
        if not tensor.elem_type or not tensor.HasField("shape"):
            raise ValueError(f"output {output.name!r} has no inferred type and shape")
    loaded = OnnxFromPath(str(path))()
    if len(loaded.graph.initializer) != len(model.graph.initializer):
        raise ValueError("Polygraphy loads other weights")
    return len(inferred.graph.node)


def check_commands(command):
    parser = argparse.ArgumentParser()
    Convert().setup_parser(parser.add_subparsers())
    args, unknown = parser.parse_known_args(command["polygraphy"][1:])
    if unknown or not args.strongly_typed or args.convert_to != "trt":
        raise ValueError(f"Polygraphy does not know {unknown}")
    points = ("min", "opt", "max")
    given = [getattr(args, f"trt_{p}_shapes") or [] for p in points]
    profiles = parse_profile_shapes(TensorMetadata(), *given)
    for point, name in enumerate(points):
        start = f"--{name}Shapes="
        native = [w[len(start) :] for w in command["trtexec"] if w.startswith(start)]
        if len(native) != len(profiles):
            raise ValueError(f"{len(native)} profiles for trtexec, {len(profiles)} for Polygraphy")
        for text, profile in zip(native, profiles):
            wanted = {n: [int(d) for d in s.split("x")] for n, s in (p.split(":") for p in text.split(","))}
            read = {n: list(shapes[point]) for n, shapes in profile.items()}
            if read != wanted:
                raise ValueError(f"{name}: Polygraphy reads {read}, trtexec is given {wanted}")
    return len(profiles)


def main(folders):
    if not folders:
        print("usage: onnx_check.py FOLDER...", file=sys.stderr)
        return 2
    failed = 0
    G_LOGGER.module_severity = G_LOGGER.WARNING
    for folder in map(pathlib.Path, folders):
        commands = folder.with_name(folder.name + ".commands.json")
        for command in json.loads(commands.read_text())["commands"] if commands.exists() else []:
            try:
                print(f"{folder}: {command['graph']}: command lines ok, {check_commands(command)} profiles")
            except Exception as e:
                print(f"{folder}: {command['graph']}: {type(e).__name__}: {e}", file=sys.stderr)
                failed += 1
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
