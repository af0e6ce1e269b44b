"""Keys and the owners they stand for."""

import contextlib
import hmac

import pytest

from configs.settings import ApiSettings
from deployments.api.auth import KeyAuth, owner_of
from deployments.api.errors import Unauthorized
from deployments.tasks.model import ANONYMOUS


def auth(*keys: str) -> KeyAuth:
    return KeyAuth(ApiSettings(keys=keys))


def test_without_keys_everyone_is_the_same_nobody():
    assert auth().owner(None) == auth().owner("anything") == ANONYMOUS


def test_an_owner_is_stable_differs_by_key_and_does_not_tell_it():
    first, second = auth("alpha", "beta").owner("alpha"), auth("alpha", "beta").owner("beta")
    assert first == auth("alpha").owner("alpha") == owner_of("alpha")
    assert first != second
    assert "alpha" not in first
    assert first.isalnum()


@pytest.mark.parametrize("given", [None, "", "alph", "alphaa", "Alpha", "a" * 513, "\u4e2d"])
def test_anything_but_a_key_is_refused(given):
    with pytest.raises(Unauthorized):
        auth("alpha", "beta").owner(given)


def test_every_key_is_compared_whichever_fits(monkeypatch):
    real, compared = hmac.compare_digest, []

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return real(one, other)

    found = auth("alpha", "beta", "gamma")
    monkeypatch.setattr(hmac, "compare_digest", counting)
    for given in ("alpha", "gamma", "wrong"):
        compared.clear()
        with contextlib.suppress(Unauthorized):
            found.owner(given)
        assert len(compared) == 3


def test_a_key_is_not_in_its_holder_s_memory_as_text():
    assert "alpha" not in str(vars(auth("alpha")))


def test_keys_of_other_scripts_are_told_apart_however_they_were_read():
    keys = auth("密钥密钥", "钥密钥密")
    for given in ("????", "错误密码"):
        with pytest.raises(Unauthorized):
            keys.owner(given)
    for key in ("密钥密钥", "钥密钥密"):
        in_header = key.encode().decode("latin-1")
        assert keys.owner(key) == keys.owner(in_header) == owner_of(key)
