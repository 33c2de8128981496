"""The programs of the documentation that need other libraries: fenced as `py`, as docs/transcripts.py runs `python`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def example(page: str, heading: str) -> str:
    """The first such program under a heading of a page."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"# {heading}\n")[2]
    match = re.search(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"{page} has no program under {heading!r}"
    return match[1]
