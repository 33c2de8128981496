"""Objects of S3 and of what speaks its protocol, by the client below s3fs: it takes no more than was asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote.fsspec import StoreFile, StoreSource, marks_in
from belay_cli.storage.remote.source import LARGEST_LISTING, TIMEOUT, Entry, changed
from belay_cli.storage.retry import Trouble

PROTOCOLS = ("s3", "s3a")
_PIECE = 1 << 18  # bytes of a body that are taken at a time
_CONNECTIONS = 32


class S3Source(StoreSource):
    """What one URL of s3:// names. The endpoint and the credentials are those that boto finds."""

    def reader(self, name: str, entry: Entry) -> S3File:
        """Of a file in the listing."""
        return S3File(self, *self._place(name), entry)

    def content_id(self, entry: Entry) -> str | None:
        """By the ETag: equal ones on one server mean equal content, and a copy written in other parts has another."""
        if "ETag" not in entry.marks:
            return None
        endpoint = self.store.s3.meta.endpoint_url
        return f"s3:{endpoint}:{entry.marks['ETag']}"

    async def client(self, bucket: str) -> Any:
        """Of aiobotocore."""
        await self.store.set_session()
        return await self.store.get_s3(bucket)

    def sync(self, coroutine: Callable[..., Any], *arguments: Any) -> Any:
        """Without a limit of its own, since it might then outlive this call; each request has one."""
        return importlib.import_module("fsspec.asyn").sync(self.store.loop, coroutine, *arguments)

    def _find(self) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = self.sync(self._pages)
        return found

    async def _pages(self) -> dict[str, Mapping[str, Any]]:
        """Page after page, to an end however much there is."""
        bucket, key, _ = self.store.split_path(self.root)
        client = await self.client(bucket)
        wanted = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        found: dict[str, Mapping[str, Any]] = {}
        while len(found) <= LARGEST_LISTING:
            page = await client.list_objects_v2(**wanted, **self.store.req_kw)
            for item in page.get("Contents", ()):
                found[f"{bucket}/{item['Key']}"] = {"size": item["Size"], "ETag": item.get("ETag")}
            if not page.get("IsTruncated"):
                break
            wanted["ContinuationToken"] = page["NextContinuationToken"]
        return found

    def _open(self) -> None:
        super()._open()
        self.store.retries = 1  # ours are enough

    def _options(self, configured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Nothing that a person would set: limits in time, no second try within a try, and no listing out of date."""
        config = {
            "connect_timeout": TIMEOUT,
            "read_timeout": TIMEOUT,
            "max_pool_connections": _CONNECTIONS,
            "retries": {"total_max_attempts": 1},
            **configured.get("s3", {}).get("config_kwargs", {}),
        }
        versioned = {"version_aware": True} if "?versionId=" in self._url else {}
        return {"config_kwargs": config, "use_listings_cache": False, **versioned}

    def _way_in(self) -> str:
        return "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a public bucket: FSSPEC_S3_ANON=true"


class S3File(StoreFile):
    """One object, for several threads at once."""

    source: S3Source

    def _read(self, view: memoryview, offset: int) -> None:
        self.source.sync(self._get, view, offset)

    async def _get(self, view: memoryview, offset: int) -> None:
        store = self.source.store
        bucket, key, version = store.split_path(self.path)
        client = await self.source.client(bucket)
        wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={offset}-{offset + len(view) - 1}"}
        wanted |= {"VersionId": version} if version else {}
        wanted |= {"IfMatch": f'"{self.entry.marks["ETag"]}"'} if "ETag" in self.entry.marks else {}
        answer = await client.get_object(**wanted, **store.req_kw)
        try:
            self._check(answer, offset, len(view))
            done = 0
            while done < len(view) and (part := await answer["Body"].read(min(_PIECE, len(view) - done))):
                view[done : done + len(part)] = part
                done += len(part)
        finally:
            answer["Body"].close()
        if done < len(view):
            raise Trouble("was cut short")

    def _check(self, answer: Mapping[str, Any], offset: int, count: int) -> None:
        """Before the body is read: that it is what was asked for, of the object that was listed."""
        size = self.entry.size
        whole = offset == 0 and count == size
        said = answer.get("ContentRange", f"bytes 0-{size - 1}/{size}" if whole else "")
        if not said:
            raise CheckpointError("cannot be read in parts: its server ignores ranges", file=self.shown)
        marks = marks_in({"ETag": answer.get("ETag")})
        if said.rpartition("/")[2] != str(size) or not self.entry.is_still(Entry(size, marks)):
            raise changed(self.shown)
        if said != f"bytes {offset}-{offset + count - 1}/{size}" or answer.get("ContentLength", count) != count:
            raise Trouble("was answered with other bytes than those asked for")
