"""Images of a bundle, as a model of Triton's Python back end.

Every request goes to one scheduler, which decodes the images of all of them in one batch that they join and leave. The
environment of the back end needs the package `dpar_export`, which has the loop.
"""

import json
import os
import threading

import dpar_export
import numpy as np
import triton_python_backend_utils as pb_utils

# Once for all images of a request: names, and what they become.
NUMBERS = {
    "seed": int,
    "first": int,
    "cfg_scale": float,
    "threshold": float,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "preview_every": int,
}
# How long a client that went away is not noticed while no event comes.
LOOK = 0.05
# How often the counters are told to Triton.
NOTE = 1.0
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        if not pb_utils.using_decoupled_model_transaction_policy(config):
            raise pb_utils.TritonModelException("this model is decoupled: its config.pbtxt was changed")
        told = {name: value["string_value"] for name, value in config["parameters"].items()}
        number = lambda name: float(told[name]) if name in told else None
        device = told.get("device")
        if args["model_instance_kind"] == "GPU" and device is not None:
            # The instance's own GPU, whichever the parameter names.
            way = f"{device.split(':')[0]}:" if ":" in device else ""
            device = way + args["model_instance_device_id"]
        # A relative path is one inside the version's folder.
        folder = os.path.join(args["model_repository"], args["model_version"], told["bundle"])
        self.bundle = dpar_export.open(
            folder,
            engine=told["engine"],
            threads=int(told["threads"]) if "threads" in told else None,
            device=device,
        )
        self.scheduler = self.bundle.scheduler(
            rows=int(told["rows"]),
            queue=int(told["queue"]),
            queue_time=number("queue_time"),
            decode_time=number("decode_time"),
            job_images=int(told["request_images"]),
        )
        # Ready means that an image can be drawn.
        with self.scheduler.submit(classes=[0]) as job:
            for _ in job:
                pass
        self.ended = threading.Event()
        self.noting = threading.Thread(target=self.note, args=(Counters(args),), daemon=True)
        self.noting.start()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                stream = bool(one(request, "stream", False))
                job = self.scheduler.submit(**asked(request, stream))
            except Exception as error:
                sender.send(pb_utils.InferenceResponse(error=said(error)), flags=FINAL)
                continue
            # As many as the scheduler takes: those that would wait longer were refused.
            threading.Thread(target=self.answer, args=(sender, job, stream), daemon=True).start()

    def answer(self, sender, job, stream):
        """Hands over what comes of a job; the last response says so. A client that went away frees its rows."""
        images, held = [], None
        try:
            with job:
                while True:
                    ready = job.poll(LOOK)
                    if sender.is_cancelled():
                        return
                    if not ready:
                        continue
                    event = next(job, None)
                    if event is None:
                        break
                    if isinstance(event, dpar_export.Image):
                        images.append(event)
                    if not stream:
                        continue
                    if held is not None:
                        sender.send(held)
                    held = pb_utils.InferenceResponse(output_tensors=told_of(event))
            if not stream:
                images.sort(key=lambda image: image.image)
                held = pb_utils.InferenceResponse(output_tensors=drawn(images))
        except Exception as error:
            if held is not None:
                sender.send(held)
            held = pb_utils.InferenceResponse(error=said(error))
        finally:
            if held is None or sender.is_cancelled():
                sender.send(flags=FINAL)
            else:
                sender.send(held, flags=FINAL)

    def note(self, counters):
        """Tells what the scheduler counts, whatever becomes of requests."""
        while not self.ended.wait(NOTE):
            counters.note(self.scheduler.stats())

    def finalize(self):
        self.ended.set()
        self.noting.join()
        self.scheduler.close(cancel=True)
        self.bundle.close()


def one(request, name, default=None):
    """The only value of a tensor that may be missing."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise dpar_export.InputError(f"{name} is one value for all images of a request, not {len(values)}")
    return values[0]


def asked(request, stream):
    """What the tensors of a request ask for, as the scheduler takes it."""
    classes = pb_utils.get_input_tensor_by_name(request, "class")
    asking = {"classes": classes.as_numpy().reshape(-1), "tokens": False}
    for name, kind in NUMBERS.items():
        value = one(request, name)
        if value is not None:
            asking[name] = kind(value)
    if asking.get("preview_every") is not None and not stream:
        raise dpar_export.InputError("preview_every has no effect without stream")
    return asking


def drawn(images):
    """Complete images, in the order of their classes."""
    return [
        pb_utils.Tensor("image", np.stack([image.pixels for image in images])),
        pb_utils.Tensor("tokens", np.stack([image.tokens for image in images])),
        pb_utils.Tensor("steps", np.array([image.steps for image in images], np.int64)),
    ]


def told_of(event):
    """What one event of a stream says."""
    text = lambda word: pb_utils.Tensor("event", np.array([word.encode()], np.object_))
    place = pb_utils.Tensor("place", np.array([event.image], np.int64))
    if isinstance(event, dpar_export.Patch):
        patch = pb_utils.Tensor("patch", np.array([event.first, event.last], np.int64))
        return [text("patch"), place, patch, pb_utils.Tensor("entropy", np.array([event.entropy], np.float32))]
    if isinstance(event, dpar_export.Preview):
        return [text("preview"), place, pb_utils.Tensor("image", event.pixels[None])]
    return [text("image"), place, *drawn([event])]


def said(error):
    """An exception, with the code that tells clients whether to ask again."""
    code = pb_utils.TritonError.INTERNAL
    if isinstance(error, dpar_export.BusyError):
        code = pb_utils.TritonError.UNAVAILABLE
    elif isinstance(error, (dpar_export.InputError, ValueError, OverflowError)):
        code = pb_utils.TritonError.INVALID_ARG
    return pb_utils.TritonError(str(error), code)


class Counters:
    """What the scheduler counts, among Triton's own metrics; names as at `dpar-export serve`."""

    GAUGES = {"dpar_rows_busy": "busy", "dpar_queue_images": "waiting"}
    TOTALS = {"dpar_images_done_total": "done", "dpar_images_dropped_total": "dropped", "dpar_tokens_total": "tokens"}

    def __init__(self, args):
        self.labels = {"model": args["model_name"], "instance": args["model_instance_name"]}
        self.families, self.metrics = {}, {}

    def note(self, stats):
        for name, key in self.GAUGES.items():
            self.metric(name, pb_utils.MetricFamily.GAUGE).set(stats[key])
        for name, key in self.TOTALS.items():
            self.count(name, stats[key])
        for graph in stats["graphs"]:
            self.count("dpar_graph_calls_total", graph["calls"], graph=graph["graph"])
            self.count("dpar_graph_rows_total", graph["rows"], graph=graph["graph"])

    def metric(self, name, kind, **labels):
        key = (name, *labels.values())
        if key not in self.metrics:
            if name not in self.families:
                self.families[name] = pb_utils.MetricFamily(name=name, description=f"{name} of dpar-export", kind=kind)
            self.metrics[key] = self.families[name].Metric(labels={**self.labels, **labels})
        return self.metrics[key]

    def count(self, name, value, **labels):
        metric = self.metric(name, pb_utils.MetricFamily.COUNTER, **labels)
        metric.increment(max(value - metric.value(), 0))
