"""The local Hub answers the real client as the Hub does: tokens and repositories."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.fakes.hub import GITATTRIBUTES, HubServer
from tests.fakes.hub_requests import add

# The client uploads LFS files in the way that its own HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_whoami(api: HfApi) -> None:
    me = api.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("user", ["org"])
    assert me["auth"]["accessToken"]["role"] == "write"
    for token in ("hf_old", "hf_unknown"):
        with pytest.raises(HfHubHTTPError, match="Invalid user token") as caught:
            api.whoami(token=token)
        assert caught.value.response.status_code == 401


def test_repos_are_created_once_and_in_own_namespaces(server: HubServer, api: HfApi) -> None:
    url = api.create_repo("org/model", private=True)
    assert (str(url), url.repo_id) == (f"{server.endpoint}/org/model", "org/model")
    assert server.repo("org/model").private
    assert server.repo("org/model").files() == {".gitattributes": GITATTRIBUTES}
    assert api.create_repo("org/model", exist_ok=True).repo_id == "org/model"
    with pytest.raises(HfHubHTTPError, match="already created") as caught:
        api.create_repo("org/model")
    assert caught.value.response.status_code == 409
    assert api.create_repo("mine").repo_id == "user/mine"
    for name, token in (("strangers/model", "hf_w"), ("org/other", "hf_r")):
        with pytest.raises(HfHubHTTPError, match="You don't have the rights to create") as caught:
            api.create_repo(name, token=token)
        assert caught.value.response.status_code == 403
    assert set(server.repos) == {"org/model", "user/mine"}
    assert api.create_repo("org/model", token="hf_r", exist_ok=True).repo_id == "org/model"


@pytest.mark.parametrize(
    ("token", "status", "kind", "message"),
    [
        (False, 401, RepositoryNotFoundError, "Invalid username or password"),
        ("hf_unknown", 401, HfHubHTTPError, "Invalid credentials in Authorization header"),
        ("hf_old", 401, RepositoryNotFoundError, "is expired"),
        ("hf_r", 403, HfHubHTTPError, "write token"),
    ],
)
def test_who_may_not_write(
    server: HubServer, api: HfApi, token: bool | str, status: int, kind: type[HfHubHTTPError], message: str
) -> None:
    repo = server.make_repo("org/model")
    for attempt in (
        lambda: api.create_commit("org/model", add(a__txt=b"a"), commit_message="a", token=token),
        lambda: api.create_branch("org/model", branch="b", token=token),
    ):
        with pytest.raises(kind, match=message) as caught:
            attempt()
        assert (type(caught.value), caught.value.response.status_code) == (kind, status)
    assert len(repo.history) == 1
    assert list(repo.refs) == ["refs/heads/main"]


def test_what_is_not_there_and_what_is_private(server: HubServer, api: HfApi) -> None:
    server.make_repo("org/model", {"main": {"a.txt": b"a"}})
    server.make_repo("org/secret", {"main": {"a.txt": b"a"}}, private=True)
    server.make_repo("strangers/secret", private=True)
    assert api.model_info("org/secret", token="hf_r").private
    cases: list[tuple[str, str | bool, int]] = [
        ("org/none", "hf_w", 404),
        ("org/none", False, 401),
        ("org/secret", False, 401),
        ("strangers/secret", "hf_w", 404),
    ]
    for name, token, status in cases:
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.model_info(name, token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(name, "a.txt", token=token)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/model", revision="step1")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/model", "a.txt", revision="step1")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/model", "b.txt")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("org/model", "none"))
    with pytest.raises(RevisionNotFoundError):
        api.create_commit("org/model", add(a__txt=b"b"), commit_message="a", revision="step1")
