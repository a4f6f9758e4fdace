"""Generated images with what was decided for them."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpar_export import _native
from dpar_export._errors import InputError

#: Images that a notebook shows; more are there, and are not drawn.
_SHOWN = 16
#: Small images are enlarged to about this many pixels.
_PIXELS = 128


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """N images of T tokens, and how each was decoded.

    The arrays are the memory that the decoding loop filled: nothing was copied.

    Attributes:
        tokens: int64 [N, T], codes in raster order.
        patch_lengths: int64 [N, M] in tokens, each row padded with 0 on the right; M is the most patches of an image.
        entropy: float32 [N, T] in nats: column t is the entropy of token t given those before it. NaN in column 0, and where no
            entropy model runs.
        margin: float32 [N, T]: how near each draw was to another token; below about 1e-4 another engine may draw the other one.
        steps: int64 [N]: steps of the large transformer, as many as patches.
        class_labels: int64 [N].
        indices: uint64 [N]: each image's index in the run; with the seed, all that its draws depend on.
        images: uint8 [N, H, W, 3], or None where they were not asked for.
        grid_width: Tokens in a row of an image.
        calls: Calls of each graph, and the rows that they had together.
    """

    tokens: NDArray[np.int64]
    patch_lengths: NDArray[np.int64]
    entropy: NDArray[np.float32]
    margin: NDArray[np.float32]
    steps: NDArray[np.int64]
    class_labels: NDArray[np.int64]
    indices: NDArray[np.uint64]
    images: NDArray[np.uint8] | None
    grid_width: int
    calls: list[dict[str, int | str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def patches(self, image: int) -> list[int]:
        """Patch lengths of one image in tokens, without padding."""
        return [int(length) for length in self.patch_lengths[image] if length > 0]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The images, uint8 [H, W, 3] each."""
        return iter(self._images())

    def grid(
        self,
        *,
        columns: int | None = None,
        scale: int | None = None,
        labels: Sequence[str] | None = None,
        patches: bool = False,
    ) -> NDArray[np.uint8]:
        """Draws a labelled contact sheet.

        Args:
            columns: Images in a row; without it, about as many as there are rows.
            scale: Each pixel becomes a square of this side; without it, small images are enlarged to about 128 pixels.
            labels: A label for each image; without it, its class.
            patches: Outline the patches, and count them in the label.

        Returns:
            uint8 [height, width, 3].

        Raises:
            InputError: There are no images, or the labels are not as many as they.
        """
        images = self._images()
        if len(images) == 0:
            raise InputError("there are no images to draw")
        if columns is None:
            columns = next((c for c in range(1, 8) if c * c >= len(images)), 8)
        if scale is None:
            scale = max(1, _PIXELS // images.shape[1])
        if labels is None:
            labels = [f"class {label}" for label in self.class_labels]
        overlay = [self.patches(i) for i in range(len(self))] if patches else None
        return _native.grid(images, columns, scale, list(labels), overlay, self.grid_width)

    def __repr__(self) -> str:
        n, t = self.tokens.shape
        size = "no images" if self.images is None else f"{self.images.shape[1]} × {self.images.shape[2]} pixels"
        mean = float(self.steps.mean()) if n else float("nan")
        return f"Samples({n} images of {t} tokens, {size}, {mean:.2f} steps on average)"

    def _repr_html_(self) -> str:
        """The images with their patches, for notebooks: one picture inside the page, nothing is fetched."""
        said = html.escape(repr(self))
        if self.images is None or len(self) == 0:
            return f"<p>{said}</p>"
        shown = min(len(self), _SHOWN)
        first = Samples(
            tokens=self.tokens[:shown],
            patch_lengths=self.patch_lengths[:shown],
            entropy=self.entropy[:shown],
            margin=self.margin[:shown],
            steps=self.steps[:shown],
            class_labels=self.class_labels[:shown],
            indices=self.indices[:shown],
            images=self.images[:shown],
            grid_width=self.grid_width,
        )
        data = base64.b64encode(_native.png(first.grid(patches=True))).decode("ascii")
        more = f" The first {shown} are shown." if shown < len(self) else ""
        picture = f'<img alt="{said}" style="max-width:100%" src="data:image/png;base64,{data}">'
        return f"<figure>{picture}<figcaption>{said}.{more}</figcaption></figure>"

    def _images(self) -> NDArray[np.uint8]:
        if self.images is None:
            raise InputError("these samples have no images", "generate them with images=True")
        return self.images


@dataclass(frozen=True, eq=False)
class Scores:
    """Teacher-forced outputs for N images of T tokens.

    Attributes:
        logits: float32 [N, T, V]: slot t saw the class and the tokens before t.
        entropy: float32 [N, T] in nats: column j is the entropy of token j + 1. None without an entropy model.
        patch_lengths: int64 [N, M] in tokens, padded with 0 on the right. None for systems without patches.
    """

    logits: NDArray[np.float32]
    entropy: NDArray[np.float32] | None
    patch_lengths: NDArray[np.int64] | None
