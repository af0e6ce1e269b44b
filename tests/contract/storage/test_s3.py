"""What only S3 can get wrong: signatures, public links, leaked credentials, a broken server."""

import asyncio
import logging
import time
import traceback

import httpx
import pytest

from configs.settings import Settings
from deployments.storage import open_store
from deployments.storage.local import LocalStore
from deployments.storage.s3 import S3Store
from deployments.storage.store import StorageUnavailable


async def got(url):
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.get(url)


async def test_a_presigned_url_gives_the_object_and_its_type(s3_store):
    await s3_store.put("a/b.png", b"picture", "image/png")
    answer = await got(await s3_store.url("a/b.png"))
    assert (answer.status_code, answer.content) == (200, b"picture")
    assert answer.headers["content-type"] == "image/png"


async def test_a_presigned_url_is_for_its_key_only(s3_store):
    await s3_store.put("a/b.png", b"picture", "image/png")
    await s3_store.put("a/c.png", b"other", "image/png")
    url = await s3_store.url("a/b.png")
    assert (await got(url.replace("b.png", "c.png"))).status_code == 403
    assert (await got(url.split("?")[0])).status_code == 403
    assert (await got(url[:-1] + ("0" if url[-1] != "0" else "1"))).status_code == 403


async def test_a_presigned_url_lives_as_long_as_set(s3_server):
    store = S3Store(s3_server.settings(presigned_ttl_s=60))
    assert "X-Amz-Expires=60&" in await store.url("a.png")
    await store.close()


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "{endpoint}/pictures/a/b.png"),
        ({"prefix": "prod/"}, "{endpoint}/pictures/prod/a/b.png"),
        ({"public_url": "https://cdn.test/x/"}, "https://cdn.test/x/a/b.png"),
        (
            {"endpoint_url": None, "region": "eu-west-1"},
            "https://pictures.s3.eu-west-1.amazonaws.com/a/b.png",
        ),
    ],
)
async def test_a_public_url_is_plain(s3_server, changes, url):
    store = S3Store(s3_server.settings(urls="public", **changes))
    assert await store.url("a/b.png") == url.format(endpoint=s3_server.endpoint_url)
    await store.close()


async def test_the_prefix_separates_two_stores_in_one_bucket(s3_server):
    one, two = (S3Store(s3_server.settings(prefix=prefix)) for prefix in ("one/", "two/"))
    await one.put("a.png", b"1", "image/png")
    assert not await two.exists("a.png")
    await asyncio.sleep(1.1)
    assert await two.sweep("", older_than_s=0) == 0
    assert await one.sweep("", older_than_s=0) == 1
    await one.close()
    await two.close()


async def test_a_sweep_goes_over_more_than_one_page(s3_server):
    store = S3Store(s3_server.settings(prefix="pages/"))
    await asyncio.gather(*(store.put(f"{n}.txt", b"", "text/plain") for n in range(1005)))
    await asyncio.sleep(1.1)
    assert await store.sweep("", older_than_s=0) == 1005
    assert await store.sweep("", older_than_s=0) == 0
    await store.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bucket": "no-such-bucket"}, "NoSuchBucket"),
        ({"secret_access_key": "wrong-secret-wrong-secret"}, "SignatureDoesNotMatch"),
        ({"access_key_id": "unknown-key-id"}, "InvalidAccessKeyId"),
        ({"endpoint_url": "http://127.0.0.1:9"}, "EndpointConnectionError"),
    ],
)
async def test_a_store_that_cannot_serve_says_so_without_credentials(
    s3_server, changes, reason, caplog
):
    caplog.set_level(logging.INFO)
    settings = s3_server.settings(**changes)
    store = S3Store(settings)
    with pytest.raises(StorageUnavailable, match=reason) as caught:
        await store.put("a.png", b"x", "image/png")
    with pytest.raises(StorageUnavailable, match=reason):
        await store.get("a.png")
    await store.close()
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(store)
    told += repr(settings) + repr(vars(store))
    for secret in (settings.access_key_id, settings.secret_access_key):
        assert secret.get_secret_value() not in told


async def test_an_unknown_bucket_is_not_an_unknown_object(s3_server):
    store = S3Store(s3_server.settings(bucket="no-such-bucket"))
    with pytest.raises(StorageUnavailable):
        await store.get("a.png")
    await store.close()


RESET = None
STATUS = b"HTTP/1.1 %d x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        RESET,
        b"not http at all\r\n\r\n",
        STATUS % 500,
        STATUS % 503,
        STATUS % 403,
        STATUS % 302,
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\nshort",
        b"HTTP/1.1 503 x\r\ncontent-type: application/xml\r\nconnection: close\r\n\r\n"
        b"<Error><Code>SlowDown</Code></Error>",
        b"HTTP/1.1 500 x\r\nconnection: close\r\n\r\n<Error><Code>",
    ],
    ids=["reset", "junk", "500", "503", "403", "302", "cut", "slow-down", "broken-xml"],
)
async def test_a_broken_server_is_unavailable_and_never_half_an_object(s3_server, answer):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if answer:
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = S3Store(s3_server.settings(endpoint_url=f"http://127.0.0.1:{port}"))
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        await store.get("a.png")
    assert time.monotonic() - began < 120
    await store.close()
    server.close()
    await server.wait_closed()


async def test_the_event_loop_turns_while_the_server_hangs(s3_server):
    held = []

    async def hang(reader, writer):
        held.append(writer)
        await asyncio.sleep(3600)

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = S3Store(s3_server.settings(endpoint_url=f"http://127.0.0.1:{port}"))
    reading = asyncio.create_task(store.get("a.png"))
    turns = 0
    while not held:
        await asyncio.sleep(0.01)
        turns += 1
    assert turns
    for writer in held:
        writer.transport.abort()
    server.close()
    with pytest.raises(StorageUnavailable):
        await reading
    await store.close()


async def test_the_settings_choose_the_store(s3_server, tmp_path):
    local = open_store(Settings(data_dir=tmp_path))
    assert isinstance(local, LocalStore)
    await local.put("a.png", b"x", "image/png")
    assert (tmp_path / "objects" / "a.png").read_bytes() == b"x"
    remote = open_store(Settings(data_dir=tmp_path, storage=s3_server.settings()))
    assert isinstance(remote, S3Store)
    await remote.close()


@pytest.mark.parametrize("prefix", ["../", "/etc/", "a/../../b", "~"])
async def test_a_prefix_cannot_lead_out_of_the_data_folder(tmp_path, prefix):
    with pytest.raises(ValueError):
        open_store(Settings(data_dir=tmp_path, storage={"prefix": prefix}))
