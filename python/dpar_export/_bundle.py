"""A bundle on an engine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpar_export import _native
from dpar_export._asking import Sampler, Schedule, drawing, integers, whole
from dpar_export._command import Document, Path, call, words
from dpar_export._errors import InputError, IntegrityError
from dpar_export._samples import Samples, Scores
from dpar_export._scheduler import Scheduler


class Bundle:
    """A bundle on an engine: what `dpar_export.open` returns.

    Methods may be called from several threads. The interpreter is free while they work, and Ctrl-C ends them between two steps.
    What graphs need to run is prepared by the first call and kept for the next ones, until the bundle is closed.

    Attributes:
        folder: The bundle's folder, as it was given.
    """

    def __init__(self, folder: str, native: _native.Bundle, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._native = native
        self._settings = settings
        self._facts = json.loads(native.facts())

    @property
    def manifest(self) -> dict[str, Any]:
        """The bundle's manifest.json."""
        return cast(dict[str, Any], self._facts["manifest"])

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest: identifies the bundle."""
        return str(self._facts["manifest_sha256"])

    @property
    def engine(self) -> dict[str, Any]:
        """What runs: engine, version, provider, device, library."""
        return cast(dict[str, Any], self._facts["engine"])

    @property
    def num_classes(self) -> int:
        """Classes of the model, without the null class."""
        return int(self._facts["num_classes"])

    @property
    def vocab(self) -> int:
        """Rows of the codebook, V."""
        return int(self._facts["vocab"])

    @property
    def tokens(self) -> int:
        """Tokens of an image, T."""
        return int(self._facts["tokens"])

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return int(self._facts["image_size"])

    @property
    def patch_rule(self) -> dict[str, Any]:
        """The patch rule that runs: the bundle's, but for numbers that `open` was told."""
        return cast(dict[str, Any], self._facts["patch_rule"])

    def generate(
        self,
        *,
        classes: Iterable[int] | None = None,
        num: int | None = None,
        seed: int = 0,
        first: int = 0,
        cfg_scale: float = 1.0,
        cfg_interval: int | None = None,
        sampler: Sampler = "gumbel",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        batch: int = 8,
        schedule: Schedule = "lockstep",
        images: bool = True,
    ) -> Samples:
        """Draws images.

        An image depends on the bundle, the engine, the seed, its index and its class alone: not on the batch, its neighbours or
        the schedule. The command line draws the same images, byte for byte.

        Args:
            classes: Class labels, one image each.
            num: Number of images; their classes follow from the seed. One of `classes` and `num` is needed.
            seed: 0 to 2^64 - 1.
            first: Index of the first image: `num=8, first=8` are images 8 to 15 of `num=16`.
            cfg_scale: Guidance scale s in u + s * (c - u); guidance runs above 1.
            cfg_interval: Guide only up to this decode index (slot t has index t - 1); None: always.
            sampler: How a random number picks a token: `gumbel` or `cdf`.
            temperature: Divides the logits.
            top_k: Keep the K largest logits; 0: all.
            top_p: Keep the most likely tokens up to this cumulative probability; 1: all.
            greedy: Take the most likely token instead of drawing.
            batch: Images decoded together, 1 to 256.
            schedule: Which images of a batch advance together; what is drawn does not depend on it.
            images: Turn the tokens into pixels too.

        Raises:
            InputError: A class, a number or a combination that cannot be; the bundle is closed.
            RunError: A graph failed, or gave what cannot be.
            IntegrityError: A file of the bundle was changed meanwhile.
            KeyboardInterrupt: Ctrl-C, between two steps.
        """
        out = self._native.generate(
            drawing(
                classes=classes, num=num, seed=seed, first=first, cfg_scale=cfg_scale, cfg_interval=cfg_interval,
                sampler=sampler, temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy, images=images,
            ),
            whole("batch", batch, 2**16 - 1),
            schedule,
        )  # fmt: skip
        out["calls"] = json.loads(out["calls"])
        return Samples(grid_width=int(self._facts["grid_width"]), **out)

    def stream(
        self,
        *,
        classes: Iterable[int] | None = None,
        num: int | None = None,
        seed: int = 0,
        first: int = 0,
        cfg_scale: float = 1.0,
        cfg_interval: int | None = None,
        sampler: Sampler = "gumbel",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        batch: int = 8,
        schedule: Schedule = "lockstep",
        images: bool = True,
    ) -> _native.Stream:
        """Draws images, and yields what each step came to: tokens, patches that ended, images that are complete.

        The images are those of `generate` with the same arguments. The stream can be closed at any event; its caches are freed
        then:

            with bundle.stream(classes=[1, 5], cfg_scale=2.0) as events:
                for event in events:
                    match event:
                        case dpar_export.Patch(image=i, first=a, last=b): ...
                        case dpar_export.Image(image=i, pixels=pixels): ...

        Args:
            As those of `generate`.

        Raises:
            As `generate`, and while it is iterated over.
        """
        return self._native.stream(
            drawing(
                classes=classes, num=num, seed=seed, first=first, cfg_scale=cfg_scale, cfg_interval=cfg_interval,
                sampler=sampler, temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy, images=images,
            ),
            whole("batch", batch, 2**16 - 1),
            schedule,
        )  # fmt: skip

    def scheduler(
        self,
        *,
        rows: int = 8,
        queue: int = 256,
        queue_time: float = 60.0,
        decode_time: float = 600.0,
        job_images: int = 64,
    ) -> Scheduler:
        """Starts a scheduler, which draws what several threads ask for in one batch that requests join and leave.

        It has caches of its own for `rows` images, and shares the weights with the bundle; the bundle may be closed before it.

        Args:
            rows: Images that are decoded together, 1 to 256.
            queue: Images that may wait for a row, beside a job that finds nobody waiting.
            queue_time: Seconds that an image may wait for a row.
            decode_time: Seconds that an image may take in its row.
            job_images: Images of one job.

        Raises:
            InputError: A number that cannot be; the bundle is closed.
        """
        native = self._native.scheduler(
            {
                "rows": whole("rows", rows, 2**16 - 1),
                "images": whole("job_images", job_images, 2**32),
                "queue": whole("queue", queue, 2**32),
                "queue_time": queue_time,
                "decode_time": decode_time,
            }
        )
        return Scheduler(native)

    def score(
        self,
        tokens: ArrayLike,
        class_labels: ArrayLike,
        *,
        patch_lengths: ArrayLike | None = None,
        batch: int = 8,
    ) -> Scores:
        """Scores given tokens, teacher-forced: a whole sequence in one call, without caches.

        All logits are in memory: 4 * N * T * V bytes.

        Args:
            tokens: Integers [N, T'], T' from 1 to T, each from 0 to V - 1.
            class_labels: Integers [N]; the null class may be among them.
            patch_lengths: Integers [N, M] in tokens, padded with 0; without them they follow from the patch rule.
            batch: Images in one call of a graph.

        Raises:
            InputError: An array has another shape or type, or a value that cannot be.
            RunError: A graph failed, or gave what cannot be.
            IntegrityError: A file of the bundle was changed meanwhile.
            KeyboardInterrupt: Ctrl-C, between two batches.
        """
        ids = integers("tokens", tokens, 2)
        labels = integers("class_labels", class_labels, 1)
        lengths = None if patch_lengths is None else _unpadded(integers("patch_lengths", patch_lengths, 2))
        if len(labels) != len(ids):
            raise InputError(f"{len(ids)} images have {len(labels)} class labels")
        logits, entropy, patches = self._native.score(ids, labels, lengths, _positive("batch", batch))
        return Scores(logits=logits, entropy=entropy, patch_lengths=patches)

    def decode(self, tokens: ArrayLike) -> NDArray[np.uint8]:
        """Turns tokens into images.

        Args:
            tokens: Integers [N, T], each from 0 to V - 1.

        Returns:
            uint8 [N, H, W, 3], RGB.

        Raises:
            InputError: The array has another shape or type, or a value that is no code.
            RunError: The graph failed, or gave what cannot be.
            IntegrityError: A file of the bundle was changed meanwhile.
            KeyboardInterrupt: Ctrl-C, between two images.
        """
        return self._native.decode(integers("tokens", tokens, 2))

    def encode(self, images: ArrayLike, *, batch: int = 8) -> NDArray[np.int64]:
        """Turns images into tokens.

        Args:
            images: uint8 [N, H, W, 3], RGB; or floats [N, 3, H, W] in [-1, 1].
            batch: Images in one call of the graph.

        Returns:
            int64 [N, T], codes in raster order.

        Raises:
            InputError: The array has another shape or type, or a value outside of [-1, 1].
            RunError: The graph failed, or gave what cannot be.
            IntegrityError: A file of the bundle was changed meanwhile.
            KeyboardInterrupt: Ctrl-C, between two batches.
        """
        array = np.asarray(images)
        batch = _positive("batch", batch)
        if array.ndim != 4:
            raise InputError(f"images has {array.ndim} axes, not 4")
        if array.dtype == np.uint8:
            return self._native.encode_pixels(array, batch)
        if array.dtype.kind != "f":
            hint = "give uint8 [N, H, W, 3], or floats [N, 3, H, W] in [-1, 1]"
            raise InputError(f"images is {array.dtype}", hint)
        outside = array[~((array >= -1.001) & (array <= 1.001))]
        if outside.size:
            raise InputError(f"images holds {outside.flat[0]}, outside of [-1, 1]", "uint8 holds pixels 0 to 255")
        return self._native.encode_floats(array.astype(np.float32, copy=False), batch)

    def verify(
        self,
        reference: Path | None = None,
        *,
        streams: Path | None = None,
        limit: int | None = None,
        probes: bool = True,
        batch: int = 8,
        report: Path | None = None,
        junit: Path | None = None,
    ) -> Document:
        """Compares the bundle on this engine with recorded outputs, as the command `verify`, which opens it anew.

        Args:
            reference: Folder with golden.safetensors or golden.npz, and golden.json.
            streams: File of sampled reference streams, with reference.json beside it.
            limit: Compare only the first so many streams.
            probes: Run the probes that need no reference too.
            batch: Images in one call of a graph.
            report: Write an offline HTML report to this .html file.
            junit: Write JUnit XML to this .xml file.

        Returns:
            The report: `verdict`, `checks`, `engine`, ...; `raise_for_verdict()` makes a mismatch an exception.

        Raises:
            InputError: The reference cannot be read or is not for this bundle.
            IntegrityError: The bundle is not the one that was opened.
            KeyboardInterrupt: Ctrl-C, between two steps.
        """
        self._native.facts()
        options = {
            "reference": reference, "streams": streams, "limit": limit, "no_probes": not probes, "batch": batch,
            "report": report, "junit": junit, **self._settings,
        }  # fmt: skip
        done = call(["verify", *words(options), "--", self.folder])
        if done.get("bundle") != self.manifest_sha256:
            message = f"{self.folder} is not the bundle that was opened: its manifest is another one"
            raise IntegrityError(message, "open it again", exit_code=5)
        return done

    def close(self) -> None:
        """Frees the engine's graphs and memory; what a stream uses, when that is closed. May be called twice."""
        self._native.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._native.closed

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"on {self.engine['engine']} {self.engine['version']}"
        return f"Bundle({self.folder!r}, {state})"


def open(
    bundle: Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    ort_lib: Path | None = None,
    ep_lib: Path | None = None,
    trt_lib: Path | None = None,
    cuda_graphs: bool = False,
    runtime_cache: Path | None = None,
    threshold: float | None = None,
    max_patch_length: int | None = None,
    patch_size: float | None = None,
) -> Bundle:
    """Opens a bundle, checking the hash of every file, and loads it on an engine.

    Args:
        bundle: The bundle's folder.
        engine: Name of the engine, one of `dpar_export.engines()`; without it, the embedded one.
        threads: Threads of one run; without it, the engine's choice.
        device: Where to run: `cpu`, an index, or `cuda:0` and the like.
        ort_lib: The ONNX Runtime library; without it, that of $ORT_DYLIB_PATH, else that of the installed package `onnxruntime`.
        ep_lib: Library with an execution provider that ONNX Runtime loads, such as OpenVINO's; `device` says which of its devices.
        trt_lib: Folder of the TensorRT libraries; without it, $DPAR_TRT_LIB, else that of the installed package `tensorrt-rtx-cu12-libs`.
        cuda_graphs: Record a CUDA graph for each shape and replay it, for TensorRT.
        runtime_cache: Folder for what TensorRT-RTX compiles for the device.
        threshold: Entropy in nats above which a token opens a patch, in place of the exported one.
        max_patch_length: Most tokens of a patch; no more than it was exported for.
        patch_size: Tokens of a patch in static patching.

    Raises:
        InputError: It is no bundle, or the engine or the patch rule cannot be told that.
        IntegrityError: A file does not match its hash.
        UnavailableError: The engine cannot run here; the hint says what is missing.
    """
    folder = os.fspath(bundle)
    if not isinstance(folder, str):
        raise InputError("the bundle's path is bytes, not text")
    settings = {
        "engine": engine,
        "threads": None if threads is None else _positive("threads", threads),
        "device": device,
        "ort_lib": None if ort_lib is None else os.fspath(ort_lib),
        "ep_lib": None if ep_lib is None else os.fspath(ep_lib),
        "trt_lib": None if trt_lib is None else os.fspath(trt_lib),
        "cuda_graphs": cuda_graphs,
        "runtime_cache": None if runtime_cache is None else os.fspath(runtime_cache),
        "threshold": threshold,
        "max_patch_length": max_patch_length,
        "patch_size": patch_size,
    }
    return Bundle(folder, _native.open(folder, settings), settings)


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value <= 1024:
        raise InputError(f"{name} is a whole number from 1 to 1024, not {value!r}")
    return int(value)


def _unpadded(lengths: NDArray[np.int64]) -> list[list[int]]:
    if lengths.size and lengths.min() < 0:
        raise InputError("patch_lengths holds a negative length")
    rows = []
    for i, row in enumerate(lengths):
        used = np.flatnonzero(row)
        end = int(used[-1]) + 1 if used.size else 0
        if np.any(row[:end] == 0):
            raise InputError(f"patch_lengths: row {i} has a 0 between lengths; padding is on the right")
        rows.append([int(length) for length in row[:end]])
    return rows
