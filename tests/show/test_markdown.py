"""Markdown that no content can break."""

from __future__ import annotations

from belay_cli.show.markdown import block


def test_a_fence_is_longer_than_any_in_the_block() -> None:
    assert block(["a", "````"], "sh") == ["`````sh", "a", "````", "`````"]
