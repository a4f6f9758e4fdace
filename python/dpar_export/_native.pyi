"""The extension module. Use `dpar_export`."""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

__version__: Final[str]

@final
class Bundle:
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def facts(self) -> str: ...
    def generate(self, asking: dict[str, Any], batch: int, schedule: str) -> dict[str, Any]: ...
    def stream(self, asking: dict[str, Any], batch: int, schedule: str) -> Stream: ...
    def scheduler(self, limits: dict[str, Any]) -> Scheduler: ...
    def score(
        self,
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        lengths: list[list[int]] | None,
        batch: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.int64] | None]: ...
    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]: ...
    def encode_pixels(self, images: NDArray[np.uint8], batch: int) -> NDArray[np.int64]: ...
    def encode_floats(self, images: NDArray[np.float32], batch: int) -> NDArray[np.int64]: ...

@final
class Token:
    """A token was drawn.

    Attributes:
        image: Which image: its place among those that were asked for, from 0.
        slot: The token's place in the image, in raster order, from 0.
        token: The code, a row of the tokenizer's codebook.
        entropy: That of its slot in nats; NaN at slot 0 and without an entropy model.
    """

    @property
    def image(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def entropy(self) -> float: ...

@final
class Patch:
    """A patch has ended: the tokens `first` to `last`, both included.

    Attributes:
        image: Which image: its place among those that were asked for, from 0.
        first: Its first token.
        last: Its last token.
        entropy: That of its first token in nats, as of a token.
    """

    @property
    def image(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def entropy(self) -> float: ...

@final
class Image:
    """An image is complete. T is the number of tokens of an image.

    Attributes:
        image: Which image: its place among those that were asked for, from 0.
        index: Its index in the run: with the seed, all that its draws depend on.
        class_label: Its class.
        steps: Steps of the large transformer, as many as patches.
        tokens: int64 [T].
        patch_lengths: int64 [steps]; they sum to T.
        entropy: float32 [T] in nats, that of the token at the same place; NaN at 0 and without an entropy model.
        margin: float32 [T], how near each draw was to another token.
        pixels: uint8 [H, W, 3], or None where no images were asked for.
    """

    @property
    def image(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def class_label(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def tokens(self) -> NDArray[np.int64]: ...
    @property
    def patch_lengths(self) -> NDArray[np.int64]: ...
    @property
    def entropy(self) -> NDArray[np.float32]: ...
    @property
    def margin(self) -> NDArray[np.float32]: ...
    @property
    def pixels(self) -> NDArray[np.uint8] | None: ...

@final
class Stream:
    """What decoding comes to, as it goes: an iterator of `Token`, `Patch` and `Image`.

    Of each image the events come in the order of its tokens; a `Patch` follows the entropy that ends it, and the `Image` comes
    last. Nothing is computed but while the next event is asked for. Use it in a `with` statement, or call `close`: a stream
    that is left in the middle holds its caches.
    """

    def __iter__(self) -> Stream: ...
    def __next__(self) -> Token | Patch | Image: ...
    def close(self) -> None:
        """Ends the stream and frees its caches. No event comes after it. May be called twice."""
    def cancel(self, image: int) -> bool:
        """Gives up one image, by its place among those that were asked for; the others go on.

        Returns:
            Whether it was still to be done.
        """
    @property
    def closed(self) -> bool:
        """Whether no event will come any more."""
    def __enter__(self) -> Stream: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class Preview:
    """What is drawn of an image so far.

    Attributes:
        image: Which image: its place among those that were asked for, from 0.
        tokens: Tokens drawn; what is behind them is made of token 0.
        pixels: uint8 [H, W, 3].
    """

    @property
    def image(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def pixels(self) -> NDArray[np.uint8]: ...

@final
class Scheduler:
    def submit(self, asking: dict[str, Any], job: dict[str, Any]) -> Job: ...
    def stats(self) -> str: ...
    def unwell(self) -> str | None: ...
    def close(self, cancel: bool) -> None: ...

@final
class Job:
    """What a scheduler was asked for: an iterator of `Token` and `Preview` (where they were asked for), `Patch` and `Image`.

    Of each image the events come in the order of its tokens, and the `Image` comes last; the iterator ends behind the last one.
    The work goes on whether somebody iterates or not; one thread at a time may. Use it in a `with` statement, or call `cancel`: a
    job that is left in the middle, and neither cancelled nor forgotten, keeps its rows until it is complete.

    Iterating raises what ended the job: `BusyError` when no row became free in time or decoding took too long, `RunError` when a
    graph failed or the scheduler was closed, `IntegrityError` when a file of the bundle was changed; `KeyboardInterrupt` after
    Ctrl-C, which does not end it.
    """

    def __iter__(self) -> Job: ...
    def __next__(self) -> Token | Patch | Preview | Image: ...
    def poll(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds.

        Returns:
            Whether the next event is there, or none comes any more: then iterating does not wait.
        """
    def cancel(self) -> None:
        """Gives it up, from any thread: its rows are free before the next step, and no event comes. May be called twice."""
    def __enter__(self) -> Job: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

def open(folder: str, settings: dict[str, Any]) -> Bundle: ...
def grid(
    images: NDArray[np.uint8],
    columns: int,
    scale: int,
    labels: Sequence[str],
    overlay: list[list[int]] | None,
    token_columns: int,
) -> NDArray[np.uint8]: ...
def png(pixels: NDArray[np.uint8]) -> bytes: ...
def patch_lengths(
    rule: str, entropy: NDArray[np.float32] | None, images: int, tokens: int
) -> NDArray[np.int64]: ...
def write_reference(
    folder: str, force: bool, arrays: Sequence[tuple[str, NDArray[Any]]], settings: str
) -> str: ...
def call(arguments: Sequence[str | PathLike[str]]) -> tuple[int, str]: ...
def main(program: Sequence[str], arguments: Sequence[str]) -> int: ...
def engine_names() -> list[tuple[str, bool]]: ...
