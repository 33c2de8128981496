"""Checkpoints of the Hub, which fails on demand, and of the cache of its client."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from belay_cli.storage.remote import content_id, open_remote, parse
from tests.conftest import everything_in
from tests.fakes.hub import HubServer, hub_client
from tests.storage.remote.serving import OTHER, TOKEN, failure, in_parts, made, remote, whole


def test_a_revision(hub: HubServer, home: Path) -> None:
    files = hub.repo("org/model").files("step200")
    path = remote("hf://org/model@step200")
    assert path.is_dir() and [p.name for p in path.iterdir()] == ["config.json", "model.safetensors", "unet", "vae"]
    assert path.repo == "org/model" and not path.tree.source.from_cache  # type: ignore[attr-defined]
    assert path.commit == hub.repo("org/model").at("step200").id
    assert whole(path / "model.safetensors") == in_parts(path / "model.safetensors") == files["model.safetensors"]
    assert (path / "config.json").read_bytes() == (path / "config.json").read_bytes() == files["config.json"]
    assert list(path.glob("*.json")) == [path / "config.json"]
    assert not (path / "nothing").exists() and (path / "unet").is_dir()
    assert [p.name for p in (path / "unet").iterdir()] == ["diffusion_pytorch_model.safetensors"]
    asked = [request for request in made(hub) if "/storage/" not in request]
    assert len([request for request in asked if "/tree/" in request]) == 2  # 6 entries, 3 a page
    assert len([request for request in asked if request.startswith("HEAD")]) == 1
    assert len([request for request in asked if "/revision/" in request]) == 1
    assert len([request for request in asked if "config.json" in request]) == 1
    assert len(asked) == 5
    assert everything_in(home) == ["tmp"]


def test_arguments_of_one_revision_share_its_listing(hub: HubServer) -> None:
    listings: dict[str, Any] = {}
    paths = [parse(f"hf://org/model@step100/{name}", listings) for name in ("unet", "vae", "")]
    assert all(path.is_dir() for path in paths) and list(listings) == ["hf://org/model@step100"]
    assert len([request for request in made(hub) if "/revision/" in request]) == 1


def test_the_token_goes_to_the_hub_only(hub: HubServer) -> None:
    whole(remote("hf://org/model@step100") / "model.safetensors")
    sent = {request.path.partition("/org")[0]: request.headers.get("Authorization") for request in hub.log}
    assert sent == {"/api/models": f"Bearer {TOKEN}", "": f"Bearer {TOKEN}", "/storage": None}


def test_a_revision_is_read_at_its_commit(hub: HubServer) -> None:
    path = remote("hf://org/model@step100")
    before = hub.repo("org/model").files("step100")["model.safetensors"]
    assert path.exists()
    hub.repo("org/model").write({"model.safetensors": OTHER}, "step100")
    file = open_remote(path / "model.safetensors")
    assert file.read_at(0, file.size) == before
    file.unchanged()


@pytest.mark.parametrize("redirect", [True, False])
def test_a_file_of_the_hub_that_is_replaced(hub: HubServer, redirect: bool) -> None:
    hub.redirect = redirect
    path = remote("hf://org/model@step100")
    file, small = open_remote(path / "model.safetensors"), open_remote(path / "config.json")
    assert len(file.read_at(0, 10)) == 10
    hub.swap("org/model", "model.safetensors", OTHER[:50_000])
    hub.swap("org/model", "config.json", b'{"b": 2}')
    assert "changed on its server" in failure(file.unchanged).message
    assert "changed on its server" in failure(lambda: small.read_at(0, 8)).message
    if not redirect:
        assert "changed on its server" in failure(lambda: file.read_at(0, 10)).message


def test_a_place_in_the_storage_of_the_hub_expires(hub: HubServer, waits: list[float]) -> None:
    file = open_remote(remote("hf://org/model@step100") / "model.safetensors")
    expected = hub.repo("org/model").files("step100")["model.safetensors"]
    hub.fail("GET /storage", 403, times=1, skip=1)
    assert file.read_at(0, 10) + file.read_at(10, 49_990) == expected
    assert len([request for request in made(hub) if request.startswith("HEAD")]) == 2
    assert waits == []


def test_a_fifth_of_the_requests_to_the_hub_fails(hub: HubServer) -> None:
    for seed, how in enumerate[str | int]((503, "short", "refused", "short range")):
        hub.fail_share(0.05, how, seed=seed, which="resolve|storage")
    for step in (100, 200, 300, 400):
        path = remote(f"hf://org/model@step{step}")
        assert (
            in_parts(path / "model.safetensors", 1999)
            == hub.repo("org/model").files(f"step{step}")["model.safetensors"]
        )


@pytest.mark.parametrize(
    ("url", "token", "said", "hint"),
    [
        ("hf://org/model@step500", TOKEN, "has no revision step500", "/org/model/tree/main"),
        ("hf://org/absent", TOKEN, "is not there, or not for everybody to see", "may the token see it?"),
        ("hf://org/model", None, "is not there, or not for everybody to see", "hf auth login, or set HF_TOKEN"),
        ("hf://org/model", "hf_unknown", "the token is not valid, or has expired", "/settings/tokens"),
    ],
)
def test_what_the_hub_refuses(
    hub: HubServer, home: Path, waits: list[float], url: str, token: str | None, said: str, hint: str
) -> None:
    with hub_client(hub, home, token):
        error = failure(remote(url).exists)
    assert said in error.message and hint in (error.hint or "") and error.file == url
    assert waits == [] and len(hub.requests) == 1
    assert (token or TOKEN) not in f"{error} {error.hint} {error!r}"


def test_a_gated_repository(hub: HubServer) -> None:
    hub.fail("GET", 403, times=math.inf)
    error = failure(remote("hf://org/model").exists)
    assert "is gated" in error.message and "ask for access at" in (error.hint or "")


def test_no_connection_to_the_hub(hub: HubServer, waits: list[float]) -> None:
    with hub.down():
        error = failure(remote("hf://org/model@step100").exists)
    assert "no connection to http://127.0.0.1" in error.message and len(waits) == 8


def test_links_of_the_hub_are_its_paths(hub: HubServer) -> None:
    for kind in ("resolve", "blob", "raw"):
        path = remote(f"{hub.endpoint}/org/model/{kind}/step100/unet/x.safetensors?download=true")
        assert str(path) == "hf://org/model@step100/unet/x.safetensors"
    assert str(remote(f"{hub.endpoint}/org/model/tree/refs/pr/1")) == "hf://org/model@refs/pr/1"


def test_what_holds_a_revision_is_the_repository(hub: HubServer) -> None:
    card = remote("hf://org/model@step100").parent / "README.md"
    assert str(card) == "hf://org/model/README.md" and card.read_bytes() == b"# card"


def test_the_content_is_known_before_it_is_read(hub: HubServer) -> None:
    hub.repo("org/model").write(
        {"model.safetensors": hub.repo("org/model").files("step100")["model.safetensors"]}, "step300"
    )
    paths = [remote(f"hf://org/model@step{step}") / "model.safetensors" for step in (100, 200, 300, 400)]
    first, second, third, fourth = map(content_id, paths)
    assert first == third and len({first, second, fourth}) == 3
    assert content_id(paths[0]).startswith("sha256:")  # type: ignore[union-attr]
    assert content_id(remote("hf://org/model@step100") / "config.json").startswith("git:")  # type: ignore[union-attr]
    assert not any(request.startswith("HEAD") for request in made(hub))


def _unsafe(hub: HubServer, revision: str, names: list[str]) -> None:
    hub.make_repo("org/unsafe", {revision: dict.fromkeys(names, b"1")})


def test_unsafe_names_are_not_seen(hub: HubServer) -> None:
    _unsafe(
        hub, "main", ["fine.json", "../up.json", "a/../../up.json", "a\\b.json", "c\n.json", "C:x.json", "/root.json"]
    )
    assert [path.name for path in remote("hf://org/unsafe").iterdir()] == ["fine.json"]


def test_a_listing_has_a_limit(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belay_cli.storage.remote.hub.LARGEST_LISTING", 3)
    assert "holds more than 3 files" in failure(remote("hf://org/model@step100").exists).message


def _download(revision: str, **options: Any) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download("org/model", revision=revision, **options))


def test_the_cache_of_the_client_is_used(hub: HubServer, home: Path) -> None:
    _download("step100")
    stored, before = everything_in(home), len(hub.requests)
    path = remote("hf://org/model@step100")
    file = open_remote(path / "model.safetensors")
    assert file.read_at(0, file.size) == hub.repo("org/model").files("step100")["model.safetensors"]
    file.unchanged()
    file.close()
    assert (path / "config.json").read_bytes() == b'{"a": 1}'
    assert all("/api/models/" in target for _, target in hub.requests[before:])
    assert everything_in(home) == stored


def test_a_file_in_the_cache_that_is_another_is_passed_over(hub: HubServer) -> None:
    folder = Path(_download("step100"))
    hub.repo("org/model")
    target = (folder / "model.safetensors").resolve()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(target.read_bytes()[:-1])
    path = remote("hf://org/model@step100") / "model.safetensors"
    assert whole(path) == hub.repo("org/model").files("step100")["model.safetensors"]


def test_offline_the_cache_is_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _download("step100")
    _download("step200", allow_patterns=["config.json"])
    before = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = remote("hf://org/model@step100")
    assert path.is_dir() and path.tree.source.from_cache and path.commit == hub.repo("org/model").at("step100").id  # type: ignore[attr-defined]
    assert whole(path / "model.safetensors") == hub.repo("org/model").files("step100")["model.safetensors"]
    assert [p.name for p in (path / "unet").iterdir()] == ["diffusion_pytorch_model.safetensors"]
    assert content_id(path / "model.safetensors").startswith("sha256:")  # type: ignore[union-attr]
    missing = remote("hf://org/model@step200") / "model.safetensors"
    if missing.is_file():  # clients that keep listings know that it belongs there
        error = failure(lambda: whole(missing))
        assert "is not in the cache" in error.message and "hf download org/model" in (error.hint or "")
    error = failure(remote("hf://org/model@step300").exists)
    assert error.message == "is not in the cache, and HF_HUB_OFFLINE is set"
    assert "hf download org/model --revision step300" in (error.hint or "")
    assert len(hub.requests) == before


def test_without_a_connection_the_cache_is_the_hub(hub: HubServer) -> None:
    _download("step100")
    with hub.down():
        path = remote("hf://org/model@step100")
        assert path.is_dir() and path.tree.source.from_cache  # type: ignore[attr-defined]
        assert whole(path / "model.safetensors") == hub.repo("org/model").files("step100")["model.safetensors"]
