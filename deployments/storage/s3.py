"""Objects in a bucket of S3, or of anything that speaks its protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from configs.settings import StorageSettings
from deployments.storage.key import checked_key, checked_prefix
from deployments.storage.store import ObjectNotFound, StorageUnavailable

T = TypeVar("T")

_CONNECTIONS = 16
_COPY_BYTES = 2**20
_md5 = functools.partial(hashlib.md5, usedforsecurity=False)
_NOT_FOUND = frozenset({"NoSuchKey", "NotFound", "404"})


class S3Store:
    """An ObjectStore in one bucket, which must exist.

    A `put` is believed without a HEAD after it: S3 and its look-alikes in use promise that a read
    after a write sees it, and the MD5 that goes along lets the server refuse a damaged transfer.
    """

    def __init__(self, settings: StorageSettings) -> None:
        self._settings = settings
        self._prefix = checked_prefix(settings.prefix)
        self._client = _client(settings)
        # Its own threads: a store that hangs must not hold those that everything else waits for.
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="s3")

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        digest = _md5(data).digest()
        await self._call(
            self._client.put_object,
            **self._object(key),
            Body=data,
            ContentType=content_type,
            ContentMD5=base64.b64encode(digest).decode(),
        )

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        where = self._object(key)

        def write() -> None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, _md5).digest()
                file.seek(0)
                self._client.put_object(
                    **where,
                    Body=file,
                    ContentType=content_type,
                    ContentMD5=base64.b64encode(digest).decode(),
                )

        await self._call(write)

    async def get(self, key: str) -> bytes:
        data: bytes = await self._read(key, lambda body: body.read())
        return data

    async def fetch(self, key: str, path: Path) -> None:
        def copy(body: Any) -> None:
            with path.open("wb") as file:
                shutil.copyfileobj(body, file, _COPY_BYTES)

        await self._read(key, copy)

    async def delete(self, key: str) -> None:
        with contextlib.suppress(_NotFound):
            await self._call(self._client.delete_object, **self._object(key))

    async def exists(self, key: str) -> bool:
        try:
            await self._call(self._client.head_object, **self._object(key))
        except _NotFound:
            return False
        return True

    async def url(self, key: str) -> str:
        where = self._object(key)
        if self._settings.urls == "public":
            return f"{self._public_base()}/{quote(where['Key'])}"
        # In a thread because credentials may have to be fetched or renewed first.
        url: str = await self._call(
            self._client.generate_presigned_url,
            "get_object",
            Params=where,
            ExpiresIn=self._settings.presigned_ttl_s,
        )
        return url

    async def sweep(self, prefix: str, older_than_s: float) -> int:
        checked_prefix(prefix)
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        return await self._call(self._sweep, self._prefix + prefix, before)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _read(self, key: str, use: Callable[[Any], T]) -> T:
        where = self._object(key)

        def read() -> T:
            with contextlib.closing(self._client.get_object(**where)["Body"]) as body:
                return use(body)

        try:
            return await self._call(read)
        except _NotFound:
            raise ObjectNotFound(key) from None

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._settings.bucket, "Key": self._prefix + checked_key(key)}

    def _public_base(self) -> str:
        chosen = self._settings
        if chosen.public_url:
            return chosen.public_url.rstrip("/")
        if chosen.endpoint_url:
            return f"{chosen.endpoint_url.rstrip('/')}/{chosen.bucket}"
        return f"https://{chosen.bucket}.s3.{chosen.region}.amazonaws.com"

    def _sweep(self, prefix: str, before: datetime) -> int:
        """In a thread. A page at a time, so a bucket of millions takes no memory."""
        swept = 0
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._settings.bucket, Prefix=prefix
        )
        for page in pages:
            old = [
                {"Key": found["Key"]}
                for found in page.get("Contents", ())
                if found["LastModified"] < before
            ]
            if old:
                answer = self._client.delete_objects(
                    Bucket=self._settings.bucket, Delete={"Objects": old, "Quiet": True}
                )
                swept += len(old) - len(answer.get("Errors", ()))
        return swept

    async def _call(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        loop = asyncio.get_running_loop()
        with _failures():
            return await loop.run_in_executor(self._threads, lambda: work(*args, **named))


class _NotFound(Exception):
    """S3 said that there is no such key."""


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Errors without their cause: those of S3 quote key ids, signatures and signed headers."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "no code"))
        if code in _NOT_FOUND:
            raise _NotFound from None
        raise StorageUnavailable(f"S3 refused {error.operation_name} with {code[:60]}") from None
    except (BotoCoreError, HTTPClientError, OSError, RecursionError) as error:
        # RecursionError: how botocore follows an endpoint that redirects everything, e.g. to https.
        raise StorageUnavailable(f"S3 did not answer: {type(error).__name__}") from None


def _client(settings: StorageSettings) -> Any:
    key_id, secret = settings.access_key_id, settings.secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        aws_access_key_id=key_id.get_secret_value() if key_id else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=20,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=_CONNECTIONS,
            # Look-alikes seldom have a name for every bucket, and few know the newer checksums.
            s3={"addressing_style": "path" if settings.endpoint_url else "virtual"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
