"""Names that no file can have, and half characters: one line of ours, whoever meets them first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from belay_cli import average, inspect, plan, push, verify
from belay_cli.errors import BelayError, SeriesError, UsageError
from belay_cli.storage.files import can_be, is_plain_name
from tests.conftest import make_adapter, make_run

LONG = "x" * 256
IMPOSSIBLE = "can be no path: a name in it is too long, or holds a zero byte"


@pytest.mark.parametrize("name", [LONG, f"a/{LONG}/b", "a/" * 3000, "a\0b", "\ud800"])
@pytest.mark.parametrize(
    "run",
    [average, inspect, plan, verify, lambda name: push(name, "a/b"), lambda name: average("run", name)],
    ids=["average", "inspect", "plan", "verify", "push", "output"],
)
def test_paths_that_cannot_be(run: Callable[[str], object], name: str) -> None:
    make_run(Path("run"))
    with pytest.raises(UsageError) as caught:
        run(name)
    assert caught.value.message.endswith(IMPOSSIBLE)
    assert len(caught.value.message) < 400


def test_a_folder_that_cannot_be() -> None:
    make_run(Path("run"))
    with pytest.raises(UsageError, match="is no folder inside a checkpoint"):
        average("run", subfolder=LONG)


def test_what_can_be() -> None:
    assert can_be("x" * 255)
    assert not can_be(LONG)
    assert can_be("é" * 127)
    assert not can_be("é" * 128)
    assert can_be(b"\xff".decode("utf-8", "surrogateescape"))
    assert not is_plain_name(LONG)


def test_half_characters_of_an_adapter_can_be_printed() -> None:
    for step in (1, 2):
        make_adapter(Path(f"run/checkpoint-{step}"), step)
        Path(f"run/checkpoint-{step}/adapter_config.json").write_text('{"peft_type": "A\\ud800", "r": 2}')
    with pytest.raises(SeriesError) as caught:
        average("run")
    assert '"A\\ud800"' in str(caught.value)
    str(caught.value).encode()


def test_an_error_is_text_whatever_a_file_says() -> None:
    error = BelayError("has \ud800", file="\udfff", hint="\ud800")
    assert (error.message, error.file, error.hint) == ("has \\ud800", "\\udfff", "\\ud800")
    assert str(error) == "\\udfff: has \\ud800"
