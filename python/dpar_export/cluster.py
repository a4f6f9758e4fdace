"""An evaluation on many machines: chunks that workers of a Ray cluster pull, and the same `metrics.json` as one process writes.

    from dpar_export import cluster

    found = cluster.evaluate(
        "bundle", num=50_000, reference="reference.npz", extractor="inception", out="run",
        on="ray://head:10001", resources={"CPU": 4}, cfg_scale=2.0, seed=0,
    )

This package gives out work and keeps what comes; chunks are evaluated and joined by the program, as `evaluate --shard` and
`--merge` do it. So the bytes are those of one process, whatever the number of workers, their order and their failures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from dpar_export import _native
from dpar_export._command import Document, Path, call, words
from dpar_export._errors import DparError, InputError
from dpar_export._parts import Parts, discard
from dpar_export._ray import Driver
from dpar_export._worker import Input, Task, digest

__all__ = ["Progress", "evaluate"]

#: Called with the images that are done, and all.
Progress = Callable[[int, int], None]

#: Options with a value that say where and by whom the work is done, how the program talks, or what is done with all parts
#: together: workers have their own, or none.
_WITH_VALUE = {
    "--on", "--workers", "--resource", "--output", "-o", "--bundle", "--extractor", "--threads", "--log-format",
    "--compare", "--resample-distances",
}  # fmt: skip
#: The same without a value.
_FLAGS = {"--resume", "--json", "--quiet", "-q", "--verbose", "-v", "-vv"}


def evaluate(
    bundle: Path,
    *,
    num: int,
    reference: Path,
    extractor: Path,
    out: Path,
    on: str = "ray",
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    copy: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **options: object,
) -> Document:
    """FID, sFID, IS, Precision, Recall and KID of images that a bundle draws, by the workers of a Ray cluster.

    Workers pull chunks, so that faster machines do more; each loads engine and extractor once. The bundle and the extractor are
    read from their path where a machine has them there, and sent through Ray's object store where not; their hashes are checked.
    What a worker sends is stored beside `out`, in `out.parts`, with its hashes. A lost worker's chunks are done again, and late ones twice at
    the end. The reference is read where this runs; so this machine needs the engine too.

    Args:
        bundle: Bundle that draws the samples.
        num: Images; their classes follow from the seed.
        reference: A set of images, statistics, or activations.
        extractor: Feature network: an extractor bundle, or an .onnx file.
        out: Output folder, as `dpar_export.evaluate` has it.
        on: `ray`: the cluster of RAY_ADDRESS or of this machine, else one that is started here; or `ray://HOST:PORT`. Where the
            program has called `ray.init` already, that cluster.
        workers: How many [default: as many as the cluster has room for].
        resources: What a worker takes, in Ray's names [default: `{"CPU": 1}`]. It runs as many threads as CPUs.
        copy: Send bundle and extractor to every machine's disk, although their paths are there.
        resume: Go on where an earlier call with the same arguments ended, also one whose process was killed.
        progress: Called as images are done.
        options: The other options of `dpar_export.evaluate`, such as `cfg_scale`, `seed`, `engine`, `batch`, `variant`.

    Returns:
        The content of metrics.json.

    Raises:
        InputError: An input, or a combination of arguments, that cannot be.
        UnavailableError: Ray is not installed, or no cluster is reached; a machine lacks an engine.
        IntegrityError: A machine has another bundle, or would compute other features.
        KeyboardInterrupt: Ctrl-C; go on with `resume=True`.
    """
    if "=" in "".join(resources or ()):
        raise InputError("the name of a resource has a `=` in it")
    own = {
        "bundle": bundle, "num": num, "reference": reference, "extractor": extractor, "output": out, "on": on,
        "workers": workers, "resource": [f"{name}={amount}" for name, amount in (resources or {}).items()],
        "resume": resume,
    }  # fmt: skip
    arguments = ["evaluate", *words({**own, **options})]
    final, out_folder = _spread(arguments, copy=copy, progress=progress)
    found = call(final)
    discard(parts_of(out_folder))
    return found


def main(arguments: Sequence[str]) -> int:
    """The command line `evaluate --on`."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() and not {"--quiet", "-q"} & set(arguments):
            end = "\n" if done == total else ""
            print(f"\r{done}/{total} images", end=end, file=sys.stderr, flush=True)

    try:
        final, out = _spread(arguments, copy=False, progress=show)
    except DparError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted\nhint: go on with the same command line and --resume", file=sys.stderr)
        return 130
    code = _native.main([sys.executable, "-m", "dpar_export"], final)
    # Numbers are there; what a comparison says of them is another thing.
    if code in (0, 1, 4) and (out / "metrics.json").is_file():
        discard(parts_of(out))
    return code


def parts_of(out: FilePath) -> FilePath:
    """Where parts are kept until they are joined: beside the output folder, since no output holds what is read."""
    return out.with_name(f"{out.name}.parts")


def without(arguments: Sequence[str], with_value: set[str], flags: set[str]) -> list[str]:
    """The words of a command line but for some options."""
    kept: list[str] = []
    rest = iter(arguments)
    for word in rest:
        name = word.partition("=")[0]
        short = next((o for o in with_value if len(o) == 2 and word.startswith(o)), None)
        if word in flags:
            continue
        if word in with_value:
            next(rest, None)
        elif name not in with_value and short is None:
            kept.append(word)
    return kept


def _spread(arguments: Sequence[str], *, copy: bool, progress: Progress | None) -> tuple[list[str], FilePath]:
    """Does the parts of `evaluate --on`; gives the command line that does the rest, and the output folder."""
    # The limit holds for each process, and this one is the user's.
    plan = call(without(arguments, {"--max-memory"}, set()))
    out = FilePath(os.path.abspath(plan["output"]))
    keeping = without(arguments, {"--on", "--workers", "--resource", "--output", "-o"}, {"--resume"})
    final = [*keeping, f"--output={out}", "--resume"]
    if plan["stored"] == plan["images"]:
        return final, out
    named = plan["named"]
    resources = {r["name"]: float(r["amount"]) for r in named["resources"]} or {"CPU": 1.0}
    inputs = [(option, FilePath(named[option])) for option in ("bundle", "extractor") if named[option]]
    task = Task(
        words=tuple(without(arguments, _WITH_VALUE, _FLAGS)),
        folder=os.getcwd(),
        inputs=tuple(Input(option, os.path.abspath(path), digest(path)) for option, path in inputs),
        copied=copy,
        shards=plan["shards"],
        threads=named["threads"] or max(1, int(resources.get("CPU", 1))),
        key=plan["key"],
    )
    try:
        with Parts(parts_of(out), task.key, task.shards) as store:
            if store.missing():
                driver = Driver(task, store, resources, named["workers"])
                driver.run(plan["on"], progress, plan["images"])
    except OSError as error:
        raise InputError(f"parts cannot be kept in {parts_of(out)}: {error}") from error
    return [*final, "--merge", *(str(store.folder(n)) for n in range(1, task.shards + 1))], out
