"""Jobs of the command line as functions: export, evaluate, metrics."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from dpar_export._asking import Sampler, Schedule
from dpar_export._command import Document, Path, call, words

Precision = Literal["fp32", "fp16", "bf16", "fp16-autocast", "bf16-autocast"]
Variant = Literal["adm", "torch-fidelity", "pytorch-fid", "clean-fid"]


def export(
    checkpoint: Path,
    out: Path,
    *,
    precision: Precision | str | None = None,
    quantize: str | None = None,
    accuracy_level: Literal[1, 4] | None = None,
    entropy: Path | None = None,
    vq: Path | None = None,
    epoch: int | None = None,
    map: Path | None = None,
    weights: str | None = None,
    config: Path | None = None,
    threshold: float | None = None,
    max_patch_length: int | None = None,
    patch_size: float | None = None,
    component: Literal["inception", "efficientnet-lite0", "features"] | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Document:
    """Exports a checkpoint to a bundle: ONNX graphs, weights and manifest. The folder appears complete or not at all.

    Args:
        checkpoint: Experiment folder (config.yaml and checkpoints/), or a LlamaGen weight file.
        out: Bundle folder to write.
        precision: Type of weights, products and caches; without it fp32. Of each component: "entropy=fp32,dpar=fp16".
        quantize: Keep weights in whole numbers: `int8`, `int4`, or for each component, as in `dpar=int4,vq=none`.
        accuracy_level: What engines may round in products with them: 4, activations to 8 bits; 1, nothing. Without it 4.
        entropy: Entropy model, where config.yaml does not name it.
        vq: VQ tokenizer weights, where config.yaml does not name them.
        epoch: Epoch to take; without it the final one, else the newest.
        map: Rename rules for tensors with other names (YAML).
        weights: State dict to read in a .pt that holds several.
        config: config.yaml of a single weight file.
        threshold: Entropy in nats above which a token opens a patch, in place of the configuration's.
        max_patch_length: Most tokens of a patch, in place of the configuration's.
        patch_size: Tokens of a patch in static patching.
        component: The checkpoint is a feature network for metrics, not a system.
        force: Replace an earlier bundle.
        dry_run: Read and check everything, write nothing.

    Returns:
        `output` and `manifest`; of a dry run `system`.

    Raises:
        InputError: The checkpoint cannot be read or is not what its configuration says; `out` is in the way.
        KeyboardInterrupt: Ctrl-C, between two graphs; nothing is left behind.
    """
    options = {
        "output": out, "precision": precision, "quantize": quantize, "accuracy_level": accuracy_level, "entropy": entropy,
        "vq": vq, "epoch": epoch, "map": map, "weights": weights, "config": config, "threshold": threshold,
        "max_patch_length": max_patch_length, "patch_size": patch_size, "component": component, "force": force,
        "dry_run": dry_run,
    }  # fmt: skip
    return call([*words(options), "--", os.fspath(checkpoint)])


def evaluate(
    *,
    reference: Path,
    extractor: Path,
    out: Path,
    input_size: int | None = None,
    samples: Path | None = None,
    bundle: Path | None = None,
    num: int | None = None,
    limit: int | None = None,
    cfg_scale: float | None = None,
    seed: int | None = None,
    cfg_interval: int | None = None,
    sampler: Sampler | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    schedule: Schedule | None = None,
    engine: str | None = None,
    extractor_engine: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
    variant: Variant | None = None,
    compare: Path | None = None,
    shard: str | None = None,
    merge: Sequence[Path] | None = None,
    resume: bool = False,
    convert: Literal["rgb"] | None = None,
    recursive: bool = False,
    metric_seed: int | None = None,
) -> Document:
    """FID, sFID, IS, Precision, Recall and KID of images, or of images that a bundle draws; resumable, in shards.

    Args:
        reference: A set of images, statistics, or activations.
        extractor: Feature network: an extractor bundle, or an .onnx file.
        out: Output folder: metrics.json and the state of the work.
        input_size: Side in pixels of the input of an .onnx file that leaves it open.
        samples: Folder of PNGs, or an .npz with `arr_0` uint8 [N, H, W, 3].
        bundle: Bundle that draws the samples; one of `samples` and `bundle` is needed.
        num: Images that the bundle draws; their classes follow from the seed.
        limit: Take the first so many samples.
        cfg_scale, seed, cfg_interval, sampler, temperature, top_k, top_p, greedy, schedule: As `Bundle.generate`.
        engine: Engine of the bundle.
        extractor_engine: Engine of the extractor; without it, `engine`.
        threads: Threads of one run.
        batch: Images in one call of a graph.
        variant: Whose protocol.
        compare: metrics.json of another evaluation under the same protocol; the verdict is in `exit_code`.
        shard: `I/N`: this part only; all parts are joined with `merge`.
        merge: Output folders of all shards.
        resume: Go on where an earlier call with the same arguments ended.
        convert: Read pictures of any pixels as RGB.
        recursive: Take the images of sub-folders too.
        metric_seed: Seed of the KID subsets and of the bootstrap.

    Returns:
        The content of metrics.json; of a shard how far it is.

    Raises:
        InputError: An input, or a combination of arguments, that cannot be.
        KeyboardInterrupt: Ctrl-C; go on with `resume=True`.
    """
    options = {
        "reference": reference, "extractor": extractor, "output": out, "input_size": input_size,
        "samples": samples, "bundle": bundle,
        "num": num, "limit": limit, "cfg_scale": cfg_scale, "seed": seed, "cfg_interval": cfg_interval,
        "sampler": sampler, "temperature": temperature, "top_k": top_k, "top_p": top_p, "greedy": greedy,
        "schedule": schedule, "engine": engine, "extractor_engine": extractor_engine, "threads": threads,
        "batch": batch, "variant": variant, "compare": compare, "shard": shard, "merge": merge, "resume": resume,
        "convert": convert, "recursive": recursive, "metric_seed": metric_seed,
    }  # fmt: skip
    return call(["evaluate", *words(options)])


def metrics(
    activations: Path,
    reference: Path,
    *,
    variant: Variant | None = None,
    pr_mode: Literal["f32", "adm"] | None = None,
    kid_subsets: int | None = None,
    kid_subset_size: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
) -> Document:
    """FID, sFID, IS, Precision, Recall and KID of activations.

    Args:
        activations: .npz of the samples: `pool_3` [N, 2048], optional `spatial` and `logits`.
        reference: The same of the reference, or `mu`, `sigma`, `mu_s`, `sigma_s`.
        variant: Whose protocol.
        pr_mode: Precision and Recall exactly, or in the float16 of ADM's evaluator.
        kid_subsets: Subsets of the second KID.
        kid_subset_size: Images in a subset.
        threads: Threads; no number depends on it.
        seed: Seed of the KID subsets.

    Returns:
        `metrics`, `not_computed` with reasons, `protocol`, `samples`, `reference`.

    Raises:
        InputError: A file cannot be read, or the two do not belong together.
        KeyboardInterrupt: Ctrl-C; nothing was written.
    """
    options = {
        "activations": activations, "reference": reference, "variant": variant, "pr_mode": pr_mode,
        "kid_subsets": kid_subsets, "kid_subset_size": kid_subset_size, "threads": threads, "seed": seed,
    }  # fmt: skip
    return call(["metrics", *words(options)])
