"""Times this tool beside scipy, numpy and torch on the same data in the same run, and prints the ratios.

    python3 metrics/benches/compare.py FOLDER [--rows 10000] [--threads 2] [--cases frechet precision-recall features]

FOLDER receives virtual environments (they are reused when they are there): numpy and scipy, and for the case `features`
torch with pytorch-fid, several GB; `--torch-python` takes one that has them. Standard library only until then; the
script starts itself again inside the environments. Run it from the root of the repository after `cargo xtask setup`.

Processor time is printed beside the time on the clock, because other work on the machine changes the latter. numpy's
library is left to choose its own kernel: variables that choose another (OPENBLAS_CORETYPE, OPENBLAS_L2_SIZE) are unset,
and the kernel is printed.
"""
import argparse
import array
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

PACKAGES = ["numpy>=2", "scipy>=1.14", "threadpoolctl"]
TORCH_PACKAGES = ["torch", "torchvision", "pytorch-fid==0.3.0"]
CASES = ["frechet", "precision-recall", "features"]
IMAGES, BATCH = 96, 16


def environment(folder, name, packages):
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def clean(threads):
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    chosen = ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"]
    kept = {name: value for name, value in os.environ.items() if name not in chosen}
    return {**kept, **{name: str(threads) for name in names}}


def rust(arguments, cases, threads):
    command = ["cargo", "bench", "--quiet", "-p", "dpar-export-metrics", "--bench", "speed", "--"]
    if arguments.skip_bench_build:
        command = [arguments.skip_bench_build]
    command += ["--threads", str(threads), "--rows", str(arguments.rows), *cases]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def timed(f):
    start, before = time.perf_counter(), time.process_time()
    value = f()
    return time.perf_counter() - start, time.process_time() - before, value


def worker(arguments):
    """One numpy measurement in its own process, so that the number of threads and the peak memory are its own."""
    import numpy as np

    sys.path.insert(0, str(arguments.fixtures))
    from synthetic_activations import activations

    spec = {"D": 2048, "model_seed": 1, "k": 10, "r": 256, "noise_bits": 9}
    if arguments.worker == "frechet":
        from scipy import linalg

        a = activations({**spec, "N": 6000, "seed": 16}).astype(np.float64)
        b = activations({**spec, "N": 5000, "seed": 17, "far_bits": 7, "far_seed": 98}).astype(np.float64)
        ma, mb, ca, cb = a.mean(0), b.mean(0), np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        del a, b

        def distance():
            root = linalg.sqrtm(ca.dot(cb))
            d = ma - mb
            return float(d.dot(d) + np.trace(ca) + np.trace(cb) - 2 * np.trace(root.real))

        seconds, cpu, value = timed(distance)
    else:
        n = arguments.rows
        x = activations({**spec, "N": n, "seed": 22, "far_bits": 8, "far_seed": 96})
        y = activations({**spec, "N": n, "seed": 21})

        def distances(u, v):
            d = (u**2).sum(1)[:, None] - 2 * (u @ v.T) + (v**2).sum(1)[None]
            return np.maximum(d, 0)

        def radii(u):
            return np.partition(distances(u, u), 3, axis=1)[:, 3]

        def both():
            rx, ry, d = radii(x), radii(y), distances(x, y)
            return [int((d <= ry[None]).any(1).sum()), int((d <= rx[:, None]).any(0).sum())]

        seconds, cpu, value = timed(both)
    import threadpoolctl

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kernel = " ".join(sorted({info.get("architecture", "") for info in threadpoolctl.threadpool_info()}))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "value": value, "peak_bytes": peak, "kernel": kernel}))


def torch_worker(arguments):
    """pytorch-fid's own network with the seeded weights of fixtures/inception: resize and features of the images."""
    import numpy as np
    import torch

    sys.path.insert(0, str(arguments.fixtures.parent / "inception"))
    import generate
    from pytorch_fid import inception as fid

    state = {name: torch.from_numpy(v) for name, v in generate.weights().items()}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 256, 256, 3), dtype=np.uint8)
    np.savez(arguments.folder / "images.npz", arr_0=images)
    torch.save(state, arguments.folder / "weights.pth")
    net = generate.network()
    net.load_state_dict(state, strict=False)
    fid.fid_inception_v3 = lambda: net
    wrapper = fid.InceptionV3([3]).eval()
    torch.set_num_threads(arguments.threads)

    def features():
        parts = []
        with torch.inference_mode():
            for i in range(0, IMAGES, BATCH):
                x = torch.from_numpy(images[i : i + BATCH]).permute(0, 3, 1, 2).float() / 255
                parts.append(wrapper(x)[0])
        return float(torch.cat(parts).double().mean())

    features()
    seconds, cpu, value = timed(features)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "value": value}))


def numpy_case(python, arguments, case, threads):
    command = [python, __file__, str(arguments.folder), "--worker", case, "--rows", str(arguments.rows)]
    command += ["--threads", str(threads)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=clean(threads)).stdout
    return json.loads(output.splitlines()[-1])


def features(python, arguments):
    """Images a second through FID-Inception, resize included, on ONNX Runtime and in torch."""
    threads = arguments.threads
    theirs = numpy_case(python, arguments, "torch", threads)
    program = arguments.program
    if not program:
        subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "dpar-export"], check=True)
        program = "target/release/dpar-export"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        scratch = pathlib.Path(scratch)
        images, bundle = str(arguments.folder / "images.npz"), str(scratch / "inception")
        weights = str(arguments.folder / "weights.pth")
        export = [program, "--target", "onnx", "--component", "inception", weights, "-o", bundle]
        export += ["--resize", "half-pixel-bilinear"]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        run = [program, "evaluate", "--samples", images, "--reference", images, "--extractor", bundle]
        run += ["--variant", "pytorch-fid", "--engine", "ort", "--threads", str(threads), "--batch", str(BATCH)]
        # One part only: no metrics, and no second set.
        run += ["--shard", "1/1", "-o", str(scratch / "out"), "--chunk", str(IMAGES)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        env = {**os.environ, "RUST_LOG": "dpar_export=info", "NO_COLOR": "1"}
        done = subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = float(re.search(r"features taken.* seconds=([0-9.e+-]+)", done.stderr).group(1))
        pool = array.array("f", (scratch / "out" / "samples" / "pool_3.f32").read_bytes())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    mine = {"seconds": seconds, "cpu": cpu, "value": sum(pool) / len(pool)}
    show(f"FID-Inception, {IMAGES} images of 256 pixels, {threads} thread(s), torch", theirs, mine)
    print(f"  {IMAGES / theirs['seconds']:.1f} images/s there, {IMAGES / seconds:.1f} here (processor time here with start)")


def show(what, theirs, mine):
    print(f"{what}:")
    for name, run in [("reference", theirs), ("here", mine)]:
        print(f"  {name:9} {run['seconds']:6.2f} s, {run['cpu']:6.2f} s of processor time, result {run['value']}")
    ratio, cpu = theirs["seconds"] / mine["seconds"], theirs["cpu"] / mine["cpu"]
    kernel = f", kernel {theirs['kernel']}" if theirs.get("kernel") else ""
    print(f"  {ratio:.1f} times faster, {cpu:.1f} times less processor time{kernel}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--skip-bench-build", metavar="PATH", help="a built `speed` bench to run instead of cargo bench")
    parser.add_argument("--program", metavar="PATH", help="a built dpar-export to run instead of building one")
    parser.add_argument("--torch-python", metavar="PATH", help="a Python with torch, torchvision and pytorch-fid")
    parser.add_argument("--worker", choices=["frechet", "precision-recall", "torch"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.fixtures = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "metrics"
    if arguments.worker:
        return torch_worker(arguments) if arguments.worker == "torch" else worker(arguments)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    numeric = [case for case in arguments.cases if case != "features"]
    if numeric:
        python = environment(arguments.folder, "venv", PACKAGES)
        for threads in [arguments.threads] + ([1] if arguments.threads > 1 else []):
            ours = rust(arguments, [case for case in numeric if case != "frechet" or threads == 1], threads)
            pick = lambda case: next(r for r in ours if r["case"] == case and r.get("threads") == threads)
            if "frechet" in numeric and threads == 1:
                what = "Fréchet distance, 2048-d covariances, 1 thread, scipy sqrtm"
                show(what, numpy_case(python, arguments, "frechet", 1), pick("frechet"))
            if "precision-recall" in numeric:
                what = f"Precision/Recall, {arguments.rows} x {arguments.rows} x 2048, {threads} thread(s), numpy f32"
                theirs = numpy_case(python, arguments, "precision-recall", threads)
                show(what, theirs, pick("precision-recall"))
                memory = next(r for r in ours if r["case"] == "precision-recall" and "peak_bytes" in r)
                there, here = theirs["peak_bytes"] / 1e9, memory["peak_bytes"] / 1e9
                print(f"  peak memory {there:.2f} GB there, {here:.2f} GB here", flush=True)
    if "features" in arguments.cases:
        python = arguments.torch_python or environment(arguments.folder, "venv-torch", TORCH_PACKAGES)
        features(python, arguments)
    return None


if __name__ == "__main__":
    sys.exit(main())
