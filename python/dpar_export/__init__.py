"""dpar-export from Python: DPAR and LlamaGen bundles on engines, over the one decoding loop of the program.

    import dpar_export

    with dpar_export.open("bundle", engine="ort", threads=2) as bundle:
        samples = bundle.generate(classes=[1, 5], seed=0, cfg_scale=2.0)
    samples.images, samples.tokens, samples.patch_lengths

Warnings go to `logging.getLogger("dpar_export")`. Errors are `DparError`s, one class for each kind; what the command line ends
with is their `exit_code`.
"""

from dpar_export import _libraries, _native
from dpar_export._bundle import Bundle, open
from dpar_export._command import Document, command
from dpar_export._errors import (
    BusyError,
    DparError,
    InconclusiveError,
    InputError,
    IntegrityError,
    InternalError,
    MismatchError,
    RunError,
    UnavailableError,
)
from dpar_export._jobs import evaluate, export, metrics
from dpar_export._native import Image, Job, Patch, Preview, Stream, Token
from dpar_export._record import record
from dpar_export._samples import Samples, Scores
from dpar_export._scheduler import Scheduler

__version__ = _native.__version__

_libraries.find()

__all__ = [
    "Bundle",
    "BusyError",
    "Document",
    "DparError",
    "Image",
    "InconclusiveError",
    "InputError",
    "IntegrityError",
    "InternalError",
    "Job",
    "MismatchError",
    "Patch",
    "Preview",
    "RunError",
    "Samples",
    "Scheduler",
    "Scores",
    "Stream",
    "Token",
    "UnavailableError",
    "command",
    "engines",
    "evaluate",
    "export",
    "metrics",
    "open",
    "record",
]


def engines() -> list[str]:
    """Names of the engines that this build has, the default one first. `command("doctor")` says which of them can run here."""
    return [name for name, built in _native.engine_names() if built]
