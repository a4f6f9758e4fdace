"""Times dpar-export beside PyTorch: the same tokens of the same images, in turns, on one core, in one run.

    python side_by_side.py PROGRAM [--systems DPAR-B,LlamaGen-B] [--batches 1,8] [--rounds 3] [--core 1] [-o REPORT.json]
    python side_by_side.py PROGRAM --export

Contenders: each CPU engine of PROGRAM; PyTorch with KV caches, eager and through torch.compile; and the research code's loop, which
computes every token again for every slot (batch 1, one round: it takes minutes an image). Guidance 2 throughout. The systems are made with
`PROGRAM synth` and kept in --work. PyTorch decodes the tokens that the program drew (it draws too, and the draw is thrown away), so that all make the
same patches; where its patches part from those, the run stops.

--export times the export of each system beside torch.onnx.export(dynamo=True) of one step of the same transformers, and beside a copy
of the files that the program wrote. Both are given the checkpoint on the disk and leave ONNX files there.

Needs the packages of requirements.txt. Everything is pinned to one core, with one thread.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCALE = 2.0
#: Measured once: minutes an image.
RECOMPUTE = "PyTorch, recomputing"
EAGER = "PyTorch, KV cache, eager"


def run(*words):
    """A program that must succeed; its stdout."""
    done = subprocess.run([str(w) for w in words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: exit code {done.returncode}")
    return done.stdout


def made(options, system):
    """The checkpoint and the bundle of a system, made once."""
    checkpoint, bundle = options.work / f"{system}-checkpoint", options.work / system
    if not checkpoint.exists():
        run(options.program, "synth", system, "-o", checkpoint, "--no-vq")
    experiment = checkpoint / ("dpar" if system.startswith("DPAR") else "llamagen")
    if not bundle.exists():
        run(options.program, experiment, "-o", bundle)
    return experiment, bundle


class Ours:
    """An engine of the program: each round is a process that opens the bundle and decodes once, cold; it times itself."""

    def __init__(self, options, bundle, engine, batch):
        self.name = f"dpar-export, {engine}"
        self.report = options.work / "case.json"
        self.words = [
            options.program, "bench", bundle, "--engines", engine, "--threads", 1, "--batch", batch, "--rounds", 1,
            "--warmup", 0, "--cfg-scale", SCALE, "--seed", 0, "-o", self.report, "--force",
        ]
        self.batch = batch

    def round(self):
        run(*self.words)
        (case,) = json.loads(self.report.read_text())["cases"]
        return self.batch / case["images_per_second"], case["mean_steps"]

    def close(self):
        pass


class Torch:
    """A loop of reference.py in a process of its own, which stays."""

    def __init__(self, experiment, trace, way, batch):
        self.name = way
        words = [sys.executable, HERE / "side_by_side.py", "--worker", experiment, trace, way, batch]
        self.process = subprocess.Popen(
            [str(w) for w in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def worker(experiment, trace, way, batch):
    """Reads a line, decodes a batch, writes its seconds and mean steps."""
    import numpy as np
    import torch

    from reference import Cached, System, recompute

    torch.set_num_threads(1)
    trace, batch = np.load(trace), int(batch)
    tokens, labels, steps = (torch.from_numpy(trace[k][:batch]) for k in ("tokens", "class_labels", "steps"))
    system = System(experiment)

    def pick(slot, logits):
        torch.multinomial(torch.softmax(logits, -1), 1)
        return tokens[:, slot]

    if way == RECOMPUTE:
        loop = lambda: recompute(system, labels, SCALE, pick)  # noqa: E731
    else:
        cached = Cached(system, compiled="compile" in way)
        loop = lambda: cached.run(labels, SCALE, pick)  # noqa: E731
        loop()
    print("0", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        _, counted = loop()
        seconds = time.perf_counter() - start
        if counted.tolist() != steps.tolist():
            sys.exit(f"{way}: {counted.tolist()} patches, not {steps.tolist()}")
        print(json.dumps([seconds, counted.double().mean().item()]), flush=True)


def middle(values):
    return [min(values), statistics.median(values), max(values)]


def spread(values, digits):
    low, mid, high = middle(values)
    return f"{mid:.{digits}f}" if len(values) == 1 else f"{mid:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def decode(options):
    rows = []
    for system in options.systems:
        experiment, bundle = made(options, system)
        samples = options.work / f"{system}-samples"
        most = max(options.batches)
        run(options.program, "generate", bundle, "--num", most, "--batch", most, "--seed", 0, "--cfg-scale", SCALE,
            "--no-images", "--engine", options.engines[0], "--threads", 1, "-o", samples, "--force")
        trace = samples / "trace.npz"
        for batch in options.batches:
            torches = [EAGER] + ["PyTorch, KV cache, compile"] * options.compile
            contenders = [Ours(options, bundle, engine, batch) for engine in options.engines]
            contenders += [Torch(experiment, trace, way, batch) for way in torches]
            taken = {c.name: [] for c in contenders}
            steps = {}
            for number in range(options.rounds):
                # Who goes first is another one in each round.
                turn = number % len(contenders)
                for contender in contenders[turn:] + contenders[:turn]:
                    seconds, steps[contender.name] = contender.round()
                    taken[contender.name].append(seconds)
                    print(f"{system}, batch {batch}, {contender.name}: {seconds:.2f} s", file=sys.stderr)
            for contender in contenders:
                contender.close()
            if options.recompute and batch == 1:
                contender = Torch(experiment, trace, RECOMPUTE, batch)
                seconds, steps[RECOMPUTE] = contender.round()
                taken[RECOMPUTE] = [seconds]
                print(f"{system}, batch {batch}, {RECOMPUTE}: {seconds:.2f} s", file=sys.stderr)
                contender.close()
            base = taken[EAGER]
            for name, seconds in taken.items():
                ratios = [b / s for b, s in zip(base, seconds)]
                rows.append({"system": system, "batch": batch, "contender": name, "seconds": seconds,
                             "steps": steps[name], "times_as_fast_as_eager": ratios})
    print("| system | batch | who | s a batch: median (least to most) | steps | times as fast as PyTorch eager |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['system']} | {row['batch']} | {row['contender']} | {spread(row['seconds'], 2)} | {row['steps']:.0f} | "
              f"{spread(row['times_as_fast_as_eager'], 2)} |")
    return rows


def torch_export(experiment, out):
    """One step of each transformer of an experiment, through torch.onnx.export(dynamo=True)."""
    import torch

    from reference import System, caches

    system = System(experiment)
    parts = [("entropy_step", system.entropy), ("step", system.model)] if system.is_dpar else [("step", system.model)]

    class Step(torch.nn.Module):
        """The blocks of a step over caches that are joined: what a graph without memory of its own does."""

        def __init__(self, blocks, model):
            super().__init__()
            self.blocks, self.norm, self.output = blocks, model.norm, model.output

        def forward(self, h, cos, sin, keys, values):
            for i, block in enumerate(self.blocks):
                q, k, v = block.qkv(h, cos, sin)
                k, v = torch.cat([keys[i], k], 2), torch.cat([values[i], v], 2)
                h = block.rest(h, torch.nn.functional.scaled_dot_product_attention(q, k, v))
            return torch.nn.functional.linear(torch.nn.functional.rms_norm(h, h.shape[-1:], self.norm, 1e-5), self.output)

    for name, model in parts:
        every = [*model.encoder, *model.world, *model.decoder] if hasattr(model, "world") else list(model.blocks)
        pairs = model.dim // model.heads // 2
        keys, values = caches(every, 2, 3)
        turn = torch.zeros(2, 1, pairs)
        batch, past = torch.export.Dim("batch", min=1, max=256), torch.export.Dim("past", min=1, max=1024)
        shapes = {
            "h": {0: batch}, "cos": {0: batch}, "sin": {0: batch},
            "keys": [{0: batch, 2: past}] * len(every), "values": [{0: batch, 2: past}] * len(every),
        }
        step = Step(torch.nn.ModuleList(every), model).eval()
        with torch.no_grad():
            torch.onnx.export(
                step, (torch.zeros(2, 1, model.dim), turn, turn, keys, values), out / f"{name}.onnx", dynamo=True,
                external_data=True, dynamic_shapes=shapes, verbose=False,
            )


def export(options):
    rows = []
    for system in options.systems:
        experiment, bundle = made(options, system)
        out = options.work / "export"

        def ours():
            run(options.program, experiment, "-o", out)

        def theirs():
            out.mkdir()
            run(sys.executable, HERE / "side_by_side.py", "--torch-export", experiment, out)

        def copied():
            run("cp", "-r", bundle, out)
            run("sync", "-f", out)

        ways = {"cp and sync": copied, "dpar-export": ours, "torch.onnx.export": theirs}
        taken, sizes = {name: [] for name in ways}, {}
        for _ in range(options.rounds):
            for name, way in ways.items():
                shutil.rmtree(out, ignore_errors=True)
                start = time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - start)
                sizes[name] = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
                print(f"{system}, {name}: {taken[name][-1]:.2f} s", file=sys.stderr)
        shutil.rmtree(out, ignore_errors=True)
        for name, seconds in taken.items():
            ratios = [s / c for s, c in zip(seconds, taken["cp and sync"])]
            rows.append({"system": system, "contender": name, "seconds": seconds, "bytes": sizes[name], "times_cp": ratios})
    print("| system | who | MB written | s: median (least to most) | times as long as cp |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['system']} | {row['contender']} | {row['bytes'] / 1e6:.0f} | {spread(row['seconds'], 2)} | {spread(row['times_cp'], 2)} |")
    return rows


def main():
    if sys.argv[1:2] == ["--worker"]:
        return worker(*sys.argv[2:])
    if sys.argv[1:2] == ["--torch-export"]:
        return torch_export(sys.argv[2], Path(sys.argv[3]))
    words = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, metavar="PROGRAM", help="release build of dpar-export")
    parser.add_argument("--systems", type=words, default=["DPAR-B", "LlamaGen-B"], help="of the published table")
    parser.add_argument("--batches", type=lambda text: [int(b) for b in text.split(",")], default=[1, 8])
    parser.add_argument("--engines", type=words, default=["ort", "tract"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, help="core that everything runs on [default: the last]")
    parser.add_argument("--work", type=Path, default=Path("target/side_by_side"), help="keeps checkpoints and bundles")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--no-recompute", dest="recompute", action="store_false", help="leave the loop without caches out")
    parser.add_argument("--export", action="store_true", help="time exports instead of decoding")
    parser.add_argument("-o", "--output", type=Path, help="also write every figure as JSON")
    options = parser.parse_args()
    options.program = options.program.resolve()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if options.core is None else options.core})
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")
    options.work.mkdir(parents=True, exist_ok=True)
    rows = (export if options.export else decode)(options)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
