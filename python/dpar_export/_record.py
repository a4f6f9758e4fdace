"""Recording a reference from the user's own PyTorch model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpar_export import _native
from dpar_export._asking import integers
from dpar_export._bundle import _positive, _unpadded
from dpar_export._command import Document, Path
from dpar_export._errors import InputError, RunError
from dpar_export._jobs import export

if TYPE_CHECKING:
    import torch

#: Calls the model: (module, tokens [n, T], class labels [n], patch lengths [n, M]) to logits [n, T, V].
Call = Callable[..., "torch.Tensor"]


def record(
    checkpoint: Path,
    module: torch.nn.Module,
    tokens: ArrayLike,
    class_labels: ArrayLike,
    *,
    out: Path,
    entropy_module: torch.nn.Module | None = None,
    patch_lengths: ArrayLike | None = None,
    autocast: Literal["bf16", "fp16"] | None = None,
    call: Call | None = None,
    entropy_call: Call | None = None,
    batch: int = 8,
    force: bool = False,
    **parts: Any,
) -> Document:
    """Records what a PyTorch model gives for tokens, as a reference for `Bundle.verify`: golden.safetensors and golden.json.

    The model is the user's object, as training or sampling scripts make it; it runs where its parameters are, in evaluation
    mode, and is left as it was. PyTorch is imported here only.

    Args:
        checkpoint: The checkpoint that the model's weights are from: sizes and patch rule come from it.
        module: The model. It is called as `module(tokens, class_labels, patch_lengths)`, LlamaGen without the last, and returns
            logits [n, T, V] where slot t saw the class and the tokens before t.
        tokens: Integers [N, T], teacher-forced.
        class_labels: Integers [N]; the null class may be among them.
        out: Folder to write.
        entropy_module: The entropy model: `entropy_module(tokens)` returns logits [n, T, V] of the next token. Patches follow from
            its entropies by the checkpoint's rule.
        patch_lengths: Integers [N, M] padded with 0, where the patches are known already; without an entropy model they are needed
            in entropy modes.
        autocast: Run under `torch.autocast` in this type, as the published numbers were computed (`bf16`).
        call: How to call `module` where it is called otherwise: `call(module, tokens, class_labels, patch_lengths)`.
        entropy_call: The same of the entropy model: `entropy_call(entropy_module, tokens)`.
        batch: Images in one call.
        force: Replace an earlier reference.
        parts: Where the parts of the checkpoint are: `entropy`, `vq`, `epoch`, `weights`, `config`, `map`, `threshold`, ..., as
            `export` has them.

    Returns:
        The content of golden.json.

    Raises:
        InputError: An array does not fit the checkpoint; the models' weights are of several types, or rounded by TF32.
        RunError: The model gave what is no logits.
        ImportError: PyTorch is not installed.
    """
    import torch

    system = export(checkpoint, os.devnull, dry_run=True, **parts)["system"]
    shape = _Shape(system)
    ids = integers("tokens", tokens, 2)
    labels = integers("class_labels", class_labels, 1)
    shape.check(ids, labels)
    arithmetic, device = _arithmetic(torch, module, autocast)
    if entropy_module is not None:
        other, _ = _arithmetic(torch, entropy_module, autocast)
        if other != arithmetic:
            raise InputError(f"the model is {arithmetic} and the entropy model {other}: golden.json says one word for both")

    entropy: NDArray[np.float32] | None = None
    size = _positive("batch", batch)
    if entropy_module is not None:
        call_it = entropy_call or (lambda m, t: m(t))
        with _evaluating(torch, entropy_module, autocast):
            parts_of = [
                _entropy(torch, _logits(torch, call_it(entropy_module, _on(torch, entropy_module, rows)), shape, rows))
                for rows in _batches(ids, size)
            ]
        entropy = np.concatenate(parts_of)
    lengths = _lengths(shape, patch_lengths, entropy, len(ids))

    logits = np.empty((len(ids), shape.tokens, shape.vocab), np.float32)
    with _evaluating(torch, module, autocast):
        for start in range(0, len(ids), size):
            rows = slice(start, start + size)
            given = [_on(torch, module, ids[rows]), _on(torch, module, labels[rows])]
            if lengths is not None:
                given.append(_on(torch, module, lengths[rows]))
            found = call(module, *given) if call is not None else module(*given)
            logits[rows] = _logits(torch, found, shape, ids[rows])

    arrays: dict[str, NDArray[Any]] = {"tokens": ids, "class_labels": labels, "logits": logits}
    settings: dict[str, Any] = {
        "name": system["name"],
        "arithmetic": arithmetic,
        "device": device,
        "library": f"torch {torch.__version__}",
        "provenance": f"{type(module).__module__}.{type(module).__qualname__}, recorded by dpar-export {_native.__version__}",
    }
    if entropy is not None:
        arrays["entropy"] = entropy
    if lengths is not None:
        arrays["patch_lengths"] = lengths
        settings["steps_teacher"] = [int(n) for n in (lengths > 0).sum(axis=1)]
    rule = shape.rule
    settings.update({k: rule[k] for k in ("threshold", "max_patch_length", "patch_size") if rule.get(k) is not None})
    text = _native.write_reference(os.fspath(out), force, list(arrays.items()), json.dumps(settings))
    return Document(json.loads(text), 0)


class _Shape:
    """Sizes of a system, from a dry run of its export."""

    def __init__(self, system: dict[str, Any]) -> None:
        self.rule: dict[str, Any] = system["patch_rule"]
        self.vocab = int(system["vocab"])
        self.classes = int(system["num_classes"])
        self.tokens = int(self.rule["grid"]) ** 2
        self.patches = system["kind"] == "dpar"

    def check(self, ids: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        if ids.shape[1] != self.tokens or len(ids) == 0:
            raise InputError(f"tokens is [N, {self.tokens}] for this checkpoint, not {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise InputError(f"tokens holds {ids.min()} to {ids.max()}, the codebook has {self.vocab} rows")
        if len(labels) != len(ids):
            raise InputError(f"{len(ids)} images have {len(labels)} class labels")
        if labels.min() < 0 or labels.max() > self.classes:
            raise InputError(f"class_labels holds {labels.min()} to {labels.max()}, there are {self.classes} classes")


def _batches(array: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(array), size):
        yield array[start : start + size]


def _lengths(
    shape: _Shape, given: ArrayLike | None, entropy: NDArray[np.float32] | None, images: int
) -> NDArray[np.int64] | None:
    """Patch lengths: those given, or by the rule. Both must agree where both are known: the model saw those given."""
    if not shape.patches:
        if given is not None:
            raise InputError("patch_lengths are given, and this system has no patches")
        return None
    known = None if given is None else integers("patch_lengths", given, 2)
    if known is not None:
        if len(known) != images or any(sum(row) != shape.tokens for row in _unpadded(known)):
            raise InputError(f"patch_lengths has {images} rows that sum to {shape.tokens}, padded with 0 on the right")
        return known
    by_entropy = shape.rule["mode"] in ("entropy", "entropy_row_boundary")
    if by_entropy and entropy is None:
        hint = "give the entropy model as entropy_module, or the patches as patch_lengths"
        raise InputError("the patches of this checkpoint follow from entropies", hint)
    return _native.patch_lengths(json.dumps(shape.rule), entropy, images, shape.tokens)


def _arithmetic(torch: Any, module: torch.nn.Module, autocast: str | None) -> tuple[str, str]:
    """The word of golden.json for what is computed, and the device."""
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    devices = {p.device for p in module.parameters()}
    if len(kinds) != 1 or len(devices) != 1:
        raise InputError(
            f"the model's parameters are {_names(kinds) or 'none'} on {_names(devices) or 'no device'}: one type, one device"
        )
    kind, device = kinds.pop(), devices.pop()
    words = {torch.float32: "float32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    if kind not in words:
        raise InputError(f"the model's parameters are {kind}: float32, float16 or bfloat16 can be recorded")
    if device.type == "cuda":
        if kind == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            hint = 'torch.set_float32_matmul_precision("highest") turns TF32 off'
            raise InputError("products of float32 are rounded to TF32 here, which is not what golden.json could say", hint)
        name = str(torch.cuda.get_device_name(device))
    else:
        name = str(device.type)
    if autocast is None:
        return words[kind], name
    if autocast not in ("bf16", "fp16"):
        raise InputError(f"autocast is bf16 or fp16, not {autocast!r}")
    if kind != torch.float32:
        raise InputError(f"autocast is for models with float32 weights, these are {kind}", "leave autocast out")
    return f"{autocast}-autocast", name


def _names(things: set[Any]) -> str:
    return ", ".join(sorted(str(thing) for thing in things))


@contextmanager
def _evaluating(torch: Any, module: torch.nn.Module, autocast: str | None) -> Iterator[None]:
    """Evaluation mode, without gradients, under autocast where it was asked for; the model is left as it was."""
    training = {m: m.training for m in module.modules()}
    device = next(module.parameters()).device.type
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    cast: AbstractContextManager[Any] = torch.autocast(
        device, dtype=types.get(autocast or "", torch.bfloat16), enabled=autocast is not None
    )
    module.eval()
    try:
        with torch.inference_mode(), cast:
            yield
    finally:
        for part, mode in training.items():
            part.training = mode


def _on(torch: Any, module: torch.nn.Module, array: NDArray[np.int64]) -> torch.Tensor:
    tensor: torch.Tensor = torch.from_numpy(np.ascontiguousarray(array)).to(next(module.parameters()).device)
    return tensor


def _logits(torch: Any, found: Any, shape: _Shape, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of the codebook's rows, float32. A model with a row for the end of an image has one column more."""
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        raise RunError(f"the model returned {type(found).__name__}, not a tensor of logits", "see the argument `call`")
    got = list(found.shape)
    wanted = [len(rows), shape.tokens]
    if got[:2] != wanted or got[2:] not in ([shape.vocab], [shape.vocab + 1]):
        raise RunError(f"the model returned {got}, logits are {[*wanted, shape.vocab]}", "see the argument `call`")
    # The widening of half types is exact.
    values: NDArray[np.float32] = found[..., : shape.vocab].detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(values).all():
        raise RunError("the model returned logits that are not finite")
    return values


def _entropy(torch: Any, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """-sum p ln p in nats, softmax at temperature 1, float32."""
    logs = torch.log_softmax(torch.from_numpy(np.ascontiguousarray(logits)), dim=-1)
    found: NDArray[np.float32] = (-(logs.exp() * logs).sum(dim=-1)).numpy()
    return found
