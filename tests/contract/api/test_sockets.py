"""WebSockets of tasks, by a real server and a real client."""

import asyncio
import base64
import json
import logging

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deployments.api import services, watch
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Progress


@pytest.fixture
async def host(api, listen):
    return await listen(api)


def socket(address, task_id, *, query="", **options):
    return connect(f"ws://{address}/api/v1/tasks/{task_id}/ws{query}", **options)


async def texts(websocket):
    """All messages up to the close, and its code."""
    found = []
    try:
        while True:
            found.append(json.loads(await asyncio.wait_for(websocket.recv(), 120)))
    except ConnectionClosed:
        return found, websocket.close_code


async def refused(call):
    with pytest.raises(InvalidStatus) as error:
        async with call:
            pass
    return error.value.response


async def until(condition):
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_socket_tells_what_the_event_stream_tells_and_closes_at_the_end(api, host):
    task_id = await api.submit()
    async with socket(host, task_id) as websocket:
        assert json.loads(await websocket.recv())["data"] == {"status": "pending", "attempt": 0}
        claimed = await api.claim()
        await api.services.store.renew([Beat(claimed.claim, Progress(step=1, steps=2))])
        await api.finish(claimed)
        told, code = await texts(websocket)
    assert code == 1000
    assert [each["event"] for each in told] == ["status", "progress", "status"]
    assert told[1]["data"] == {"step": 1, "steps": 2}
    assert told[-1]["data"]["status"] == "completed"
    assert httpx.URL(told[-1]["data"]["result_url"]).host == "127.0.0.1"
    assert told[-1]["data"]["result_url"].startswith("http://")
    await until(lambda: api.services.streams == 0)
    async with socket(host, task_id, query=f"?last_event_id={told[1]['id']}") as websocket:
        again, _ = await texts(websocket)
    assert [each["event"] for each in again] == ["status"]


async def test_a_client_that_leaves_makes_room_at_once(api, host, monkeypatch):
    monkeypatch.setattr(watch, "HEARTBEAT_S", 25.0)  # nothing is written that would fail
    task_id = await api.submit()
    async with socket(host, task_id) as websocket:
        await websocket.recv()
        assert api.services.streams == 1
    await until(lambda: api.services.streams == 0)


async def test_sockets_are_closed_when_the_replica_stops_and_when_a_store_goes_away(
    api, host, monkeypatch
):
    task_id = await api.submit()
    monkeypatch.setattr(watch, "MAX_STREAM_S", 0.1)
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.05)
    async with socket(host, task_id) as websocket:
        assert (await texts(websocket))[1] == 1013
    monkeypatch.setattr(watch, "MAX_STREAM_S", 60)
    async with socket(host, task_id) as websocket:
        await websocket.recv()
        api.services.stopping.set()
        assert (await texts(websocket))[1] == 1012
    await until(lambda: api.services.streams == 0)


async def test_no_more_sockets_than_may_be_are_open(api, host, monkeypatch):
    monkeypatch.setattr(services, "MAX_STREAMS", 1)
    task_id = await api.submit()
    async with socket(host, task_id) as websocket:
        await websocket.recv()
        answer = await refused(socket(host, task_id))
    assert (answer.status_code, answer.headers["x-error-code"]) == (429, "too_many_streams")


async def test_the_key_comes_in_its_header_or_as_a_subprotocol_and_reaches_no_log(
    open_api, listen, caplog
):
    caplog.set_level(logging.INFO)
    api = await open_api(api={"keys": ["s3cret-of-ann", "bob"]}, headers={"X-API-Key": "bob"})
    host, task_id = await listen(api), await api.submit()
    offered = base64.urlsafe_b64encode(b"bob").decode().rstrip("=")
    other = base64.urlsafe_b64encode(b"s3cret-of-ann").decode().rstrip("=")
    protocols = ["daguerre", f"daguerre.key.{offered}"]
    async with socket(host, task_id, subprotocols=protocols) as websocket:
        assert websocket.subprotocol == "daguerre"
        assert json.loads(await websocket.recv())["event"] == "status"
    bearer = {"Authorization": "Bearer bob"}
    async with socket(host, task_id, additional_headers=bearer) as websocket:
        assert json.loads(await websocket.recv())["event"] == "status"
    headers = {"X-API-Key": "s3cret-of-ann"}
    for status, options in (
        (401, {}),
        (401, {"additional_headers": {"X-API-Key": "wrong"}}),
        (401, {"query": "?api_key=bob"}),
        (401, {"subprotocols": ["daguerre", "daguerre.key.%%%"]}),
        (404, {"additional_headers": headers}),
        (404, {"subprotocols": ["daguerre", f"daguerre.key.{other}"]}),
    ):
        answer = await refused(socket(host, task_id, **options))
        assert answer.status_code == status, options
    assert "s3cret" not in caplog.text
    assert other not in caplog.text


async def test_a_page_of_another_origin_and_another_host_name_are_refused(api, host):
    task_id = await api.submit()
    answer = await refused(socket(host, task_id, origin="http://evil.example"))
    assert (answer.status_code, answer.headers["x-error-code"]) == (403, "cross_origin")
    async with socket(host, task_id, origin=f"http://{host}") as websocket:
        await websocket.recv()
    at, _, port = host.partition(":")
    answer = await refused(socket("evil.example", task_id, host=at, port=int(port)))
    assert (answer.status_code, answer.headers["x-error-code"]) == (421, "unknown_host")


async def test_a_waiting_call_whose_client_left_waits_no_more(api, host):
    task_id = await api.submit()
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"http://{host}/api/v1/tasks/{task_id}?wait_s=30"
        waiting = asyncio.create_task(client.get(url))
        await until(lambda: api.services.streams == 1)
        waiting.cancel()
    async with asyncio.timeout(20):
        await until(lambda: api.services.streams == 0)
