"""Runs a model repository on a Triton server, for `cargo xtask triton`: `triton_check.py PROGRAM CHECKPOINT SCRATCH PACKAGE ENGINE`.

PACKAGE is the folder of the Python package. Exit codes: 0 all right, 1 not, 2 usage.
"""

import concurrent.futures
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request

import numpy as np
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

MODEL = "dpar"
DRAWN = {"seed": np.array([5], np.int64), "cfg_scale": np.array([2], np.float32)}
KINDS = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32", np.dtype(np.bool_): "BOOL"}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def server_files(scratch, package):
    """The server, a folder of back ends and the environment of both, of the wheel nvidia-pytriton."""
    packages = pathlib.Path(sysconfig.get_path("purelib"))
    wheel = packages / "pytriton" / "tritonserver"
    backend = pathlib.Path(scratch) / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", backend)
    # The back end starts the stub beside it, which must be the one of this Python. It reads no PYTHONPATH: its packages are those of the
    # first `python3`, and what lies beside it.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = shutil.copy(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    (backend / "dpar_export").symlink_to(pathlib.Path(package) / "dpar_export")
    program = wheel / "bin" / "tritonserver"
    for file in (pathlib.Path(stub), program):
        file.chmod(0o755)
    libraries = [str(packages / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    path = [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PATH": os.pathsep.join(path)}
    return str(program), str(backend.parent), {**os.environ, **environment}


class Server:
    def __init__(self, program, backends, environment, repository):
        self.http, self.grpc, self.metrics = free_port(), free_port(), free_port()
        words = [
            program, "--model-repository", repository, "--backend-directory", backends,
            # Of the graphs' back ends this server has none: their configurations are parsed only.
            "--model-control-mode=explicit", f"--load-model={MODEL}", "--disable-auto-complete-config",
            "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1",
            f"--http-port={self.http}", f"--grpc-port={self.grpc}", f"--metrics-port={self.metrics}",
            "--metrics-interval-ms=100",
        ]  # fmt: skip
        self.process = subprocess.Popen(words, env=environment)
        end = time.monotonic() + 120
        while not self.ready():
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server is not ready"
            time.sleep(0.1)

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/models/{MODEL}/ready") as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def get(self, port, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.read().decode()

    def post(self, path, asking):
        body = json.dumps(asking).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name, **labels):
        found = 0.0
        for line in self.get(self.metrics, "/metrics").splitlines():
            match = re.fullmatch(rf"{name}{{(.*)}} (\S+)", line)
            if match and all(f'{key}="{value}"' in match[1] for key, value in labels.items()):
                found += float(match[2])
        return found

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, "the server did not end well"


def stream(port, classes, **asking):
    """Responses to one request over gRPC, as dictionaries of arrays."""
    inputs = []
    for name, values in {"class": np.asarray(classes, np.int64), **DRAWN, **asking}.items():
        tensor = grpcclient.InferInput(name, values.shape, KINDS[values.dtype])
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    came = queue.Queue()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        client.async_stream_infer(MODEL, inputs, enable_empty_final_response=True)
        while True:
            result, error = came.get(timeout=120)
            if error is not None:
                raise error
            response = result.get_response()
            if response.outputs:
                yield {output.name: result.as_numpy(output.name) for output in response.outputs}
            if response.parameters["triton_final_response"].bool_param:
                return


def by_grpc(server, label, index):
    [answer] = stream(server.grpc, [label], first=np.array([index], np.int64))
    return answer["image"].tobytes(), int(answer["steps"][0])


def by_http(server, label, index):
    asking = {"class": [int(label)], "seed": 5, "cfg_scale": 2.0, "first": index}
    status, text = server.post(f"/v2/models/{MODEL}/generate", asking)
    assert status == 200, text
    answer = json.loads(text)
    return np.array(answer["image"], np.uint8).tobytes(), int(np.ravel(answer["steps"])[0])


def check_configs(repository):
    names = []
    for path in sorted(pathlib.Path(repository).glob("*/config.pbtxt")):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        assert config.input and config.output and config.max_batch_size == 0, path
        names.append(path.parent.name)
    print(f"{len(names)} configurations are what Triton's schema takes: {', '.join(names)}")
    assert MODEL in names and len(names) > 5


def check_images(server, labels, images, steps):
    """32 requests at a time, half of them over each protocol."""
    with concurrent.futures.ThreadPoolExecutor(len(labels)) as threads:
        asked = [
            threads.submit((by_http, by_grpc)[i % 2], server, label, i) for i, label in enumerate(labels)
        ]
        for i, answer in enumerate(asked):
            pixels, taken = answer.result()
            assert pixels == images[i].tobytes(), f"image {i} is not the command line's"
            assert taken == steps[i], (i, taken, steps[i])
    print(f"{len(labels)} requests over HTTP and gRPC: the command line's bytes")


def check_stream(server, labels, images, lengths):
    seen = {"patch": [], "preview": [], "image": []}
    asking = {"stream": np.array([True]), "preview_every": np.array([4], np.int64), "first": np.array([3], np.int64)}
    for answer in stream(server.grpc, [labels[3]], **asking):
        [word] = answer["event"]
        seen[word.decode()].append(answer)
    patches = [int(answer["patch"][1] - answer["patch"][0]) + 1 for answer in seen["patch"]]
    assert patches == [n for n in lengths[3] if n], patches
    assert seen["preview"] and len(seen["image"]) == 1
    assert seen["image"][0]["image"].tobytes() == images[3].tobytes()
    status, text = server.post(
        f"/v2/models/{MODEL}/generate_stream",
        {"class": [int(labels[3])], "seed": 5, "cfg_scale": 2.0, "first": 3, "stream": True},
    )
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert status == 200 and [event["event"] for event in events[-1:]] == ["image"], text[:200]
    assert np.array(events[-1]["image"], np.uint8).tobytes() == images[3].tobytes()
    print(f"streamed over both: {len(patches)} patches, {len(seen['preview'])} previews, the image")


# A client for itself, to be killed: 64 images, event by event or in one answer.
CLIENT = """
import sys, time
import numpy as np
from triton_check import stream
for _ in stream(int(sys.argv[1]), [0] * 64, stream=np.array([sys.argv[2] == "stream"])):
    time.sleep(600)
"""


def until(what, holds):
    """The counters are told once a second."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def check_client_gone(server, labels, images):
    place = str(pathlib.Path(__file__).parent)
    for kind in ("stream", "plain"):
        until("rows are busy", lambda: server.metric("dpar_rows_busy") == 0)
        dropped = server.metric("dpar_images_dropped_total")
        words = [sys.executable, "-c", CLIENT, str(server.grpc), kind]
        client = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": place})
        until("no row is busy", lambda: server.metric("dpar_rows_busy") > 0)
        client.kill()
        client.wait()
        busy = lambda: server.metric("dpar_rows_busy") + server.metric("dpar_queue_images")
        until(f"{kind}: the rows of a client that went away are not free", lambda: busy() == 0)
        gone = server.metric("dpar_images_dropped_total") - dropped
        assert gone > 8, f"{kind}: {gone} images were given up"
        assert by_grpc(server, labels[0], 0)[0] == images[0].tobytes()
        print(f"a client was killed ({kind}): {gone:.0f} of its images were given up, the next image is right")


def check_refusals(server):
    for asking, word in (({"class": [99]}, "class"), ({"class": [1], "temperature": -1.0}, "temperature")):
        status, text = server.post(f"/v2/models/{MODEL}/generate", asking)
        assert status == 400 and word in text, (status, text)
    print("what cannot be is refused as the client's fault")


def check_batched(server, most):
    """Rows were in flight together: by our count of each graph, and by Triton's of requests and time."""
    until("no call is counted", lambda: server.metric("dpar_graph_calls_total", graph="encoder_step"))
    calls, rows = (server.metric(f"dpar_graph_{what}_total", graph="encoder_step") for what in ("calls", "rows"))
    assert calls and rows / calls > most, (calls, rows)
    stats = json.loads(server.get(server.http, f"/v2/models/{MODEL}/stats"))["model_stats"][0]
    print(f"encoder_step: {rows / calls:.2f} rows in a call; Triton counts {stats['execution_count']} executions")


def main(arguments):
    if len(arguments) != 5:
        print(__doc__, file=sys.stderr)
        return 2
    program, checkpoint, scratch, package, engine = arguments
    bundle, samples, repository = (f"{scratch}/{name}" for name in ("bundle", "samples", "repository"))
    run = lambda *words: subprocess.run([program, *words], check=True)
    engine = ["--engine", engine, "--threads", "1"]
    run(checkpoint, "-o", bundle)
    drawn = ["--num", "32", "--seed", "5", "--cfg-scale", "2", "--batch", "1"]
    run("generate", bundle, "-o", samples, *drawn, *engine)
    run("--target", "triton", bundle, "--graphs", "--rows", "8", "-o", repository, *engine)
    check_configs(repository)
    trace = np.load(pathlib.Path(samples) / "trace.npz")
    images = np.load(pathlib.Path(samples) / "samples.npz")["arr_0"]
    labels = [int(label) for label in trace["class_labels"]]
    server = Server(*server_files(scratch, package), repository)
    try:
        check_images(server, labels, images, trace["steps"])
        check_batched(server, 2)
        check_stream(server, labels, images, trace["patch_lengths"].tolist())
        check_refusals(server)
        check_client_gone(server, labels, images)
        server.stop()
    finally:
        server.process.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
