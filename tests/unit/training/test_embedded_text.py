"""The tokenizer of the embedded model: any text in any script, and the empty prompt."""

import pytest
from transformers import CLIPTokenizer

from training.embedded_model.attributes import COLOURS
from training.embedded_model.text import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(seed=0)


def test_the_words_of_the_prompts_are_one_token_each(tokenizer: CLIPTokenizer) -> None:
    for word in [*COLOURS, "background", "hoodie", "glasses", "beard", "portrait", "skin"]:
        assert len(tokenizer(word).input_ids) == 3, word


@pytest.mark.parametrize("text", ["猫 in 帽子", "🙂🙃", "ñandú Überraschung", "привет", "x" * 40])
def test_words_never_seen_become_bytes_and_never_the_unknown_token(
    tokenizer: CLIPTokenizer, text: str
) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.lower().replace(" ", "")


def test_padding_and_cutting_give_77_tokens(tokenizer: CLIPTokenizer) -> None:
    for text in ["", "a red hat " * 60]:
        ids = tokenizer(text, padding="max_length", truncation=True).input_ids
        assert len(ids) == tokenizer.model_max_length == 77
        assert ids[-1] == tokenizer.eos_token_id


def test_the_tokenizer_is_the_same_for_the_same_seed(tokenizer: CLIPTokenizer) -> None:
    assert build_tokenizer(seed=0).get_vocab() == tokenizer.get_vocab()
