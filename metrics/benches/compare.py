"""Times this crate beside scipy and numpy on the same data in the same run, and prints the ratios.

    python3 metrics/benches/compare.py FOLDER [--rows 10000] [--threads 2] [--skip-bench-build PATH_OF_BENCH]

FOLDER receives a virtual environment with numpy and scipy (it is reused when it is there). Standard library only until
then; the script starts itself again inside the environment. Run it from the root of the repository.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

PACKAGES = ["numpy>=2", "scipy>=1.14"]


def environment(folder):
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def rust(arguments, cases):
    command = ["cargo", "bench", "--quiet", "-p", "dpar-export-metrics", "--bench", "speed", "--"]
    if arguments.skip_bench_build:
        command = [arguments.skip_bench_build]
    command += ["--threads", str(arguments.threads), "--rows", str(arguments.rows), *cases]
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "value": value, "peak_bytes": peak}))


def numpy_case(python, arguments, case, threads):
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    env = {**os.environ, **{name: str(threads) for name in names}}
    command = [python, __file__, str(arguments.folder), "--worker", case, "--rows", str(arguments.rows)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-bench-build", metavar="PATH", help="a built `speed` bench to run instead of cargo bench")
    parser.add_argument("--worker", choices=["frechet", "precision-recall"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.fixtures = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "metrics"
    if arguments.worker:
        return worker(arguments)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    python = environment(arguments.folder)
    ours = rust(arguments, ["frechet", "precision-recall"])

    def pick(case, threads):
        return next(r for r in ours if r["case"] == case and r.get("threads") == threads)

    def report(what, case, threads):
        theirs, mine = numpy_case(python, arguments, case, threads), pick(case, threads)
        print(f"{what}, {threads} thread(s):")
        for name, run in [("reference", theirs), ("here", mine)]:
            print(f"  {name:9} {run['seconds']:6.2f} s, {run['cpu']:6.2f} s of processor time, result {run['value']}")
        ratio, cpu = theirs["seconds"] / mine["seconds"], theirs["cpu"] / mine["cpu"]
        print(f"  {ratio:.1f} times faster, {cpu:.1f} times less processor time")
        return theirs

    report("Fréchet distance, 2048-d covariances, scipy sqrtm", "frechet", 1)
    what = f"Precision/Recall, {arguments.rows} x {arguments.rows} x 2048, numpy f32"
    theirs = report(what, "precision-recall", arguments.threads)
    memory = next(r for r in ours if r["case"] == "precision-recall" and "peak_bytes" in r)
    print(f"  peak memory {theirs['peak_bytes'] / 1e9:.2f} GB there, {memory['peak_bytes'] / 1e9:.2f} GB here")
    return None


if __name__ == "__main__":
    sys.exit(main())
