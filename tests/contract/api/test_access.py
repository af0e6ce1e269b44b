"""Keys, hosts, origins, request ids, health."""

import pytest

from configs.settings import Settings
from deployments.api.app import create_app

KEYS = {"keys": ["first-key", "sécond-key"]}
BODY = {"prompt": "a fox"}


@pytest.mark.parametrize(
    "given", [None, "", "wrong", "first-ke", "first-key ", "first-keyx", "x" * 100_000, "é"]
)
async def test_a_missing_or_wrong_key_is_401_for_every_route_alike(open_api, given):
    api = await open_api(api=KEYS)
    headers = {} if given is None else {"X-API-Key": given.strip(" ").encode() or b""}
    if given == "first-key ":
        headers = {"X-API-Key": b"first-key x"}
    task = "/api/v1/tasks/00000000-0000-4000-8000-000000000000"
    for method, path in [
        ("POST", "/api/v1/generate"),
        ("GET", "/api/v1/tasks"),
        ("GET", task),
        ("DELETE", task),
        ("POST", f"{task}/priority"),
        ("POST", f"{task}/front"),
        ("GET", f"{task}/events"),
    ]:
        answer = await api.http.request(method, path, headers=headers)
        assert answer.status_code == 401, (method, path)
        assert answer.json() == {"detail": "API Key无效或缺失"}
        assert answer.headers["www-authenticate"] == "ApiKey"


async def test_any_configured_key_is_let_in_also_one_beyond_ascii(open_api):
    api = await open_api(api=KEYS)
    for key in KEYS["keys"]:
        answer = await api.http.post(
            "/api/v1/generate", json=BODY, headers={"X-API-Key": key.encode()}
        )
        assert answer.status_code == 200


async def test_a_bearer_token_may_end_in_a_letter_of_which_a_byte_reads_as_a_space(open_api):
    api = await open_api(api={"keys": ["voilà"]})
    headers = {"Authorization": b"Bearer  " + "voilà".encode()}
    assert (await api.http.get("/api/v1/tasks", headers=headers)).status_code == 200


async def test_the_key_s_header_is_named_by_the_settings(open_api):
    api = await open_api(api=KEYS | {"key_header": "Authorization"})
    refused = await api.http.post("/api/v1/generate", json=BODY, headers={"X-API-Key": "first-key"})
    assert refused.status_code == 401
    answer = await api.http.post(
        "/api/v1/generate", json=BODY, headers={"authorization": "first-key"}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("header", ["X-API-Key", "X-Token", "Authorization"])
async def test_a_key_may_be_a_bearer_token_whatever_the_settings_name(open_api, header):
    api = await open_api(api=KEYS | {"key_header": header})
    for authorization, status in (("Bearer first-key", 200), ("bearer wrong", 401)):
        headers = {"Authorization": authorization}
        for path in ("/api/v1/tasks", "/api/models", "/sdapi/v1/samplers", "/v1/models"):
            answer = await api.http.get(path, headers=headers)
            assert answer.status_code == status, (path, answer.text)


async def test_a_token_that_a_gateway_added_is_no_reason_to_refuse_a_key(open_api):
    api = await open_api(api=KEYS)
    headers = {"X-API-Key": "first-key", "Authorization": "Bearer of-the-gateway"}
    for path in ("/api/v1/tasks", "/api/models", "/v1/models"):
        assert (await api.http.get(path, headers=headers)).status_code == 200


async def test_a_wrong_key_is_told_nothing_of_its_body(open_api):
    api = await open_api(api=KEYS)
    answer = await api.http.post("/api/v1/generate", content=b"{broken")
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/health", "/api/health", "/docs", "/redoc", "/openapi.json"])
async def test_health_and_documentation_need_no_key(open_api, path):
    api = await open_api(api=KEYS)
    assert (await api.http.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/api/health", "/docs", "/redoc", "/openapi.json"])
async def test_a_monitor_may_ask_with_head(api, path):
    assert (await api.http.head(path)).status_code == 200


async def test_health_tells_whether_a_worker_of_the_default_model_is_there(api):
    for path in ("/health", "/api/health"):
        answer = await api.http.get(path)
        assert answer.json() == {"status": "ok", "model_loaded": False}
    await api.services.store.announce("embedded", "worker", info={}, ttl_s=30)
    assert (await api.http.get("/health")).json() == {"status": "ok", "model_loaded": True}


async def test_without_its_store_the_service_says_so_quickly_and_comes_back(open_api, tmp_path):
    api = await open_api(redis_url=f"unix://{tmp_path}/nothing.sock")
    health = await api.http.get("/health")
    assert health.status_code == 503
    assert health.json() == {"status": "unavailable", "model_loaded": False}
    for method, path, options in [
        ("POST", "/api/v1/generate", {"json": BODY}),
        ("GET", "/api/v1/tasks", {}),
        ("GET", "/api/v1/tasks/00000000-0000-4000-8000-000000000000", {}),
    ]:
        answer = await api.http.request(method, path, **options)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert str(tmp_path) not in answer.text


async def test_without_its_object_store_a_picture_is_refused_with_503(open_api, png, data_url):
    storage = {"kind": "s3", "endpoint_url": "http://127.0.0.1:9"}
    api = await open_api(storage=storage | {"access_key_id": "a", "secret_access_key": "b"})
    answer = await api.http.post("/api/v1/generate", json=BODY | {"init_image": data_url(png())})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_foreign_host_header_is_refused_where_no_key_is_asked_for(api):
    for host in ("attacker.example", "localhost.attacker.example", "127.0.0.1.attacker.example"):
        answer = await api.http.get("/health", headers={"host": host})
        assert answer.status_code == 421, host
        assert host in answer.json()["detail"]
        assert "http.allowed_hosts" in answer.json()["detail"]
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST", "app.localhost"):
        assert (await api.http.get("/health", headers={"host": host})).status_code == 200, host


async def test_a_proxy_that_listens_on_every_address_exposes_nothing_without_keys(open_api):
    for access, status in (({}, 403), (KEYS, 200)):
        api = await open_api(api=access)
        # as the connection's own address says; the header is the caller's to choose
        for url, answered in (("http://192.0.2.7:8000", status), ("http://[::1]:8000", 200)):
            answer = await api.http.get(f"{url}/health", headers={"host": "localhost"})
            assert answer.status_code == answered, url


async def test_allowed_hosts_and_the_public_url_are_answered(open_api):
    http = {"allowed_hosts": ["a.example"], "public_url": "https://b.example"}
    api = await open_api(http=http, api=KEYS)
    for host, status in {"a.example": 200, "b.example": 200, "c.example": 421}.items():
        answer = await api.http.get("/health", headers={"host": host})
        assert answer.status_code == status


async def test_a_nonsensical_host_header_is_never_answered(open_api):
    api = await open_api(api=KEYS)
    for host in ("a/x?", "a b", "a@b", "a\\b", "", "a:b", "[::1", "a#b"):
        assert (await api.http.get("/health", headers={"host": host})).status_code == 421, host


async def test_a_page_of_another_origin_can_change_nothing(api):
    task_id = await api.submit()
    for origin in ("https://attacker.example", "null", "http://localhost:9999", ""):
        for method, path in [
            ("POST", f"/api/v1/tasks/{task_id}/front"),
            ("POST", "/api/v1/generate"),
            ("DELETE", f"/api/v1/tasks/{task_id}"),
        ]:
            answer = await api.http.request(
                method, path, headers={"origin": origin, "content-type": "text/plain"}
            )
            assert answer.status_code == 403, (origin, method)
    assert (await api.task(task_id))["status"] == "pending"


async def test_our_own_page_may(api):
    answer = await api.http.post(
        "/api/v1/generate", json=BODY, headers={"origin": "http://localhost:8000"}
    )
    assert answer.status_code == 200


async def test_no_answer_allows_another_origin_to_read_it(api):
    headers = {"origin": "https://attacker.example", "access-control-request-method": "POST"}
    for method in ("GET", "OPTIONS"):
        answer = await api.http.request(method, "/api/v1/tasks", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_plain_request_id_is_echoed_and_another_one_is_replaced(api):
    answer = await api.http.get("/health", headers={"x-request-id": "trace-17.a_b"})
    assert answer.headers["x-request-id"] == "trace-17.a_b"
    for odd in ("", "a b", "x" * 129, "\u00e9", "<script>", "a\tb"):
        answer = await api.http.get("/health", headers={"x-request-id": odd.encode()})
        assert answer.headers["x-request-id"].isalnum()
        assert len(answer.headers["x-request-id"]) == 32


async def test_errors_carry_a_request_id_too(api):
    answer = await api.http.get("/nothing")
    assert answer.headers["x-request-id"]
    assert answer.headers["x-error-code"] == "not_found"


async def test_an_unforeseen_error_is_a_bare_500_with_its_request_id(api, monkeypatch):
    async def broken(*args, **kwargs):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(api.services, "task", broken)
    answer = await api.http.get("/api/v1/tasks/1", headers={"x-request-id": "trace"})
    assert answer.status_code == 500
    assert answer.json() == {"detail": "Internal Server Error"}
    assert answer.headers["x-request-id"] == "trace"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "pictures.example.com"])
def test_the_network_is_not_served_without_keys(host):
    with pytest.raises(ValueError, match=r"api\.keys"):
        create_app(Settings(http={"host": host}))
    create_app(Settings(http={"host": host}, api={"keys": ["k"]}))


@pytest.mark.parametrize(
    ("http", "warns"),
    [({"host": "0.0.0.0"}, True), ({"host": "0.0.0.0", "public_url": "https://a.test"}, False)],
)
async def test_callbacks_that_would_name_no_address_are_warned_of(open_api, caplog, http, warns):
    await open_api(http=http, api=KEYS)
    assert ("set http.public_url" in caplog.text) is warns
