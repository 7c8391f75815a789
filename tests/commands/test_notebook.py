"""docs/notebook.md: its code, run from top to bottom."""

import re
from pathlib import Path

import PIL.Image
import pytest

from conftest import ROOT


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "notebook.md").read_text()
    for size, smaller in (("max_epochs=10", "max_epochs=1"), ("images=120", "images=24")):
        assert size in page
        page = page.replace(size, smaller)
    cells = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(cells) >= 5
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "docs/notebook.md", "exec"), names)
    assert isinstance(names["figure"], PIL.Image.Image)
    assert names["result"].epochs == 1
    assert names["scores"][0]["test/miou"] >= 0
