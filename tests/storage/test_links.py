"""Addresses as a browser shows them."""

from __future__ import annotations

import pytest

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote import parse

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        (f"{HUB}/EleutherAI/pythia-70m", "hf://EleutherAI/pythia-70m"),
        (f"{HUB}/EleutherAI/pythia-70m/", "hf://EleutherAI/pythia-70m"),
        (f"{HUB}/EleutherAI/pythia-70m/tree/step1000", "hf://EleutherAI/pythia-70m@step1000"),
        (f"{HUB}/org/name/blob/main/unet/model.safetensors", "hf://org/name@main/unet/model.safetensors"),
        (f"{HUB}/org/name/tree/refs/pr/1", "hf://org/name@refs/pr/1"),
        ("https://example.org/org/name", "https://example.org/org/name"),
    ],
)
def test_a_page_of_the_hub_is_the_repository(address: str, path: str) -> None:
    assert str(parse(address)) == path


def test_a_page_of_datasets_is_none() -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(f"{HUB}/datasets/squad")
    assert caught.value.message == "is one of the Hub's datasets; checkpoints lie in repositories of models"
