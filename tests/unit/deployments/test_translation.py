"""What of a prompt is sent to a translator, and how a call is signed."""

import hashlib
import json
import logging

import pytest

from configs.translation import TranslationSettings
from deployments import translation
from deployments.translation import TranslationUnavailable, Translator, signature

WORDS = {"猫": "cat", "月球": "moon", "杰作": "masterpiece", "低质量": "low quality", "狗": "dog"}


@pytest.fixture
def answers(monkeypatch):
    """What was asked, and by what it is answered: line by line from WORDS, or as a test says."""
    asked = []

    async def ask(url, body, headers, **terms):
        text = json.loads(body)["q"]
        asked.append(text)
        lines = [WORDS.get(line, line) for line in text.split("\n")]
        return answer(lines) if (answer := ask.answer) else (200, _said("\n".join(lines)))

    ask.answer = None
    ask.asked = asked
    monkeypatch.setattr(translation, "ask", ask)
    return ask


def _said(text):
    return json.dumps({"translatedText": text}).encode()


def translator(**settings):
    given = {"backend": "libretranslate", "url": "http://127.0.0.1:5000"} | settings
    found = Translator.of(TranslationSettings(**given))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("猫", "cat"),
        ("(猫:1.2), ((杰作)), [狗]", "(cat:1.2), ((masterpiece)), [dog]"),
        ("猫，月球、狗", "cat, moon, dog"),
        ("masterpiece, 猫 <lora:水墨:0.8>", "masterpiece, cat <lora:水墨:0.8>"),
        ("[猫:狗:0.5] AND 月球 BREAK 狗", "[cat:dog:0.5] AND moon BREAK dog"),
        (r"猫 \(狗\)", r"cat \(dog\)"),
        ("猫\n狗|月球", "cat\ndog|moon"),
    ],
)
async def test_words_are_translated_and_what_the_engine_reads_stays(answers, prompt, expected):
    assert await translator().prompt(prompt) == expected
    assert len(answers.asked) == 1


async def test_what_needs_no_translation_is_not_sent(answers):
    for prompt in ("a cat, (masterpiece:1.2)", "", "(:1.5)", "<lora:猫:1>"):
        assert await translator().prompt(prompt) == prompt
    assert answers.asked == []
    assert await translator(source="de").prompt("cat, 1.5") == "cat, 1.5"
    assert answers.asked == ["cat"]


async def test_a_word_is_sent_once(answers):
    assert await translator().prompt("猫, 猫, (猫)") == "cat, cat, (cat)"
    assert answers.asked == ["猫"]


async def test_a_translation_adds_no_syntax(answers):
    answers.answer = lambda lines: (200, _said("a (red:2) [cat] <lora:x:1>"))
    assert await translator().prompt("猫") == "a red 2 cat lora x 1"


@pytest.mark.parametrize(
    "answer",
    [
        (200, _said("one\ntwo")), (200, _said("")), (200, b"{}"), (200, b"[1]"), (200, b"not JSON"),
        (200, b'{"translatedText": 3}'), (403, b'{"error": "Invalid API key"}'), (500, b""),
        (200, b"[" * 5000),
    ],
    ids=["lines", "empty", "other", "list", "text", "number", "refused", "fault", "nested"],
)  # fmt: skip
async def test_an_answer_that_cannot_be_used_is_an_error(answers, answer):
    answers.answer = lambda lines: answer
    with pytest.raises(TranslationUnavailable):
        await translator().prompt("猫")


async def test_the_log_has_neither_secrets_nor_prompts(answers, caplog):
    text = json.dumps({"Code": "SignatureDoesNotMatch", "Message": "k3y of 猫"}).encode()
    answers.answer = lambda lines: (400, text)
    with caplog.at_level(logging.DEBUG), pytest.raises(TranslationUnavailable) as error:
        await translator(api_key="k3y").prompt("猫")
    for told in (caplog.text, str(error.value)):
        assert "400 (SignatureDoesNotMatch)" in told
        assert "k3y" not in told
        assert "猫" not in told


def test_a_signature_is_the_documented_one():
    headers = {
        "host": "ecs.cn-shanghai.aliyuncs.com",
        "x-acs-action": "RunInstances",
        "x-acs-content-sha256": hashlib.sha256(b"").hexdigest(),
        "x-acs-date": "2023-10-26T10:22:32Z",
        "x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d",
        "x-acs-version": "2014-05-26",
    }
    query = "ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai"
    signed = signature("YourAccessKeySecret", "POST", "/", query, headers)
    assert signed == "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"


def test_settings_name_what_a_backend_needs():
    assert Translator.of(TranslationSettings()) is None
    for given in ({"backend": "libretranslate"}, {"backend": "alibaba", "access_key_id": "a"}):
        with pytest.raises(ValueError, match="needed for"):
            TranslationSettings(**given)
