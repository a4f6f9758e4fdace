"""A reference from a PyTorch model: what it records is what the bundle computes. Skipped where PyTorch is not installed."""

from __future__ import annotations

from pathlib import Path

import dpar_export
import numpy as np
import pytest
from conftest import FIXTURES

torch = pytest.importorskip("torch")

EMOJI = FIXTURES / "emoji32"


def models() -> tuple[object, object]:
    from torch_model import Dpar, Gpt, load

    return (
        Dpar(load(EMOJI / "dpar/checkpoints/final/model.safetensors"), heads=3, grid=8),
        Gpt(load(EMOJI / "entropy/checkpoints/final/model.safetensors"), heads=2, grid=8),
    )


@pytest.fixture(scope="module")
def drawn(bundle_path: Path) -> dpar_export.Samples:
    with dpar_export.open(bundle_path) as bundle:
        return bundle.generate(num=4, seed=11, images=False)


def test_a_recorded_reference_passes_and_another_does_not(
    bundle_path: Path, drawn: dpar_export.Samples, tmp_path: Path
) -> None:
    model, entropy = models()
    model.train()  # type: ignore[attr-defined]
    golden = dpar_export.record(
        EMOJI / "dpar", model, drawn.tokens, drawn.class_labels, out=tmp_path / "golden", entropy_module=entropy, batch=3
    )
    assert model.training  # type: ignore[attr-defined]
    assert golden["arithmetic"] == "float32" and golden["device"] == "cpu"
    assert golden["steps_teacher"] == [int(n) for n in drawn.steps]
    with dpar_export.open(bundle_path) as bundle:
        done = bundle.verify(tmp_path / "golden", probes=False)
        assert done.passed, done
        names = {c["name"]: c["status"] for c in done["checks"]}
        assert names["logits"] == names["entropy"] == names["patch lengths"] == "pass", names
    # Weights that are not the checkpoint's are seen.
    with torch.no_grad():
        model.model.world[1].w2.mul_(1.02)  # type: ignore[attr-defined]
    dpar_export.record(
        EMOJI / "dpar", model, drawn.tokens, drawn.class_labels, out=tmp_path / "golden", entropy_module=entropy, force=True
    )
    with dpar_export.open(bundle_path) as bundle:
        with pytest.raises(dpar_export.MismatchError):
            bundle.verify(tmp_path / "golden", probes=False).raise_for_verdict()


def test_autocast_is_recorded_as_what_it_is(drawn: dpar_export.Samples, tmp_path: Path) -> None:
    model, entropy = models()
    golden = dpar_export.record(
        EMOJI / "dpar", model, drawn.tokens, drawn.class_labels, autocast="bf16", out=tmp_path / "golden",
        entropy_module=entropy,
    )  # fmt: skip
    assert golden["arithmetic"] == "bf16-autocast"
    dpar_export.export(EMOJI / "dpar", tmp_path / "bundle", precision="bf16-autocast")
    with dpar_export.open(tmp_path / "bundle") as bundle:
        done = bundle.verify(tmp_path / "golden", probes=False)
    # Decisions agree. The means of entropies and logits depend on the kernels of the PyTorch that is installed, by more than
    # `verify` grants the one that its limits were measured with.
    status = {check["name"]: check["status"] for check in done["checks"]}
    assert status["patch rule"] == status["patch lengths"] == status["mean steps"] == "pass", done


def test_a_model_that_is_called_otherwise(llamagen_path: Path, tmp_path: Path) -> None:
    from torch_model import Gpt, load

    folder = EMOJI / "llamagen"
    model = Gpt(load(folder / "c2i_emoji32.pt"), heads=3, grid=8)
    tokens = np.random.default_rng(0).integers(0, 1024, (3, 64))
    golden = dpar_export.record(
        folder / "c2i_emoji32.pt", model, tokens, [0, 4, 9], out=tmp_path / "golden", config=folder / "config.yaml",
        call=lambda m, ids, labels: m(labels=labels, tokens=ids),
    )  # fmt: skip
    assert "steps_teacher" not in golden
    with dpar_export.open(llamagen_path) as bundle:
        assert bundle.verify(tmp_path / "golden", probes=False).passed


def test_what_cannot_be_recorded_is_refused(drawn: dpar_export.Samples, tmp_path: Path) -> None:
    model, entropy = models()
    out = tmp_path / "golden"

    def refused(said: str, kind: type[Exception], *args: object, **options: object) -> None:
        with pytest.raises(kind, match=said):
            dpar_export.record(*args, out=out, **options)  # type: ignore[arg-type]
        assert not out.exists()

    given = (EMOJI / "dpar", model, drawn.tokens, drawn.class_labels)
    refused("follow from entropies", dpar_export.InputError, *given)
    refused("bf16 or fp16", dpar_export.InputError, *given, entropy_module=entropy, autocast="fp8")
    refused("class labels", dpar_export.InputError, *given[:3], [1], entropy_module=entropy)
    refused("codebook", dpar_export.InputError, *given[:2], drawn.tokens + 5000, given[3], entropy_module=entropy)
    refused("sum to 64", dpar_export.InputError, *given, patch_lengths=[[1, 2]] * 4)
    refused("logits are", dpar_export.RunError, *given, entropy_module=entropy, call=lambda m, *a: m(*a)[:, :-1])
    refused("not a tensor", dpar_export.RunError, *given, entropy_module=entropy, call=lambda m, *a: None)
    refused("not finite", dpar_export.RunError, *given, entropy_module=entropy, call=lambda m, *a: m(*a) * float("nan"))
    entropy.half()  # type: ignore[attr-defined]
    refused("one word for both", dpar_export.InputError, *given, entropy_module=entropy)
    model.half()  # type: ignore[attr-defined]
    refused("float32 weights", dpar_export.InputError, *given, entropy_module=entropy, autocast="bf16")
