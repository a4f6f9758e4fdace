"""Every Python block of the documents runs, or says here why not."""

from __future__ import annotations

import re
from pathlib import Path

import dpar_export
import pytest
from conftest import FIXTURES, ROOT

#: Blocks that do not run here, by the page and a line of the block.
ELSEWHERE = {
    ("docs/cluster.md", "found = cluster.evaluate("): "needs Ray: `cargo xtask ray` makes the same call",
    ("docs/python.md", "golden = dpar_export.record("): "needs PyTorch: `cargo xtask record-check` runs the same call",
    ("docs/reference.md", "with torch.no_grad():"): "needs the research code's model",
}


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def pages() -> list[str]:
    found = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "python/README.md"]
    return sorted(str(p.relative_to(ROOT)) for p in found if blocks(str(p.relative_to(ROOT))))


@pytest.mark.parametrize("page", pages())
def test_python_blocks_run(page: str, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").symlink_to(FIXTURES / "emoji32/dpar")
    (tmp_path / "reference").symlink_to(FIXTURES / "emoji32")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"dpar_export": dpar_export}
    for block in blocks(page):
        if any(page == there and line in block.splitlines() for there, line in ELSEWHERE):
            continue
        # A block may go on with the bundle of one before, which has left its `with`.
        with dpar_export.open(bundle_path, engine="tract") as bundle:
            names["bundle"] = bundle
            exec(compile(block, page, "exec"), names)


def test_blocks_that_do_not_run_are_there() -> None:
    for page, line in ELSEWHERE:
        assert any(line in block.splitlines() for block in blocks(page)), (page, line)
