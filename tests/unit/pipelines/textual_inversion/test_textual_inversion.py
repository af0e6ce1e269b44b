"""Embeddings in prompts: equal to diffusers', at the same places, and files that are none."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from pipelines.components import Components, load_components
from pipelines.errors import ModelError
from pipelines.prompt import Prompt, PromptCache, PromptEmbeds, encode_prompts
from pipelines.textual_inversion.file import MAX_VECTORS, read_embedding
from pipelines.textual_inversion.folder import FIRST, EmbeddingFolder


def widths(parts: Components) -> list[int]:
    return [encoder.config.hidden_size for encoder in parts.text_encoders]


def vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def save(folder: Path, name: str, parts: Components, count: int, seed: int = 0) -> list[Any]:
    """An embedding of the checkpoint's architecture; its vectors by text encoder."""
    made = [vectors(count, width, seed + i) for i, width in enumerate(widths(parts))]
    keys = ("clip_l", "clip_g") if parts.is_xl else ("emb_params",)
    save_file(dict(zip(keys, made, strict=True)), folder / f"{name}.safetensors")
    return made


def worn(parts: Components, folder: Path) -> Components:
    found = EmbeddingFolder(folder, widths(parts), parts.tokenizers[0])
    return dataclasses.replace(parts, embeddings=found)


@torch.inference_mode()
def embeds(parts: Components, *texts: str, **reading: Any) -> list[PromptEmbeds]:
    prompts = [Prompt(text, **reading) for text in texts]
    found = encode_prompts(parts, prompts)
    return [found[prompt] for prompt in prompts]


@pytest.mark.parametrize("text", ["a zebra cat", "zebra", "a cat, zebra, on a mat, zebra"])
@torch.inference_mode()
def test_a_word_gives_what_diffusers_gives(
    components: Components, folder: Path, tmp_path: Path, text: str
) -> None:
    made = save(tmp_path, "zebra", components, count=3)
    pipe = diffusers.AutoPipelineForText2Image.from_pretrained(folder)
    pairs = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")][: len(made)]
    for (tokenizer, encoder), tensor in zip(pairs, made, strict=True):
        pipe.load_textual_inversion(
            tensor,
            token="zebra",
            tokenizer=getattr(pipe, tokenizer),
            text_encoder=getattr(pipe, encoder),
        )
    expected = pipe.encode_prompt(
        text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    (found,) = embeds(worn(components, tmp_path), text)
    torch.testing.assert_close(found.tokens, expected[0])
    if found.pooled is not None:
        torch.testing.assert_close(found.pooled, expected[2])


@torch.inference_mode()
def test_rows_of_one_batch_have_their_own_vectors(components: Components, tmp_path: Path) -> None:
    save(tmp_path, "zebra", components, count=2)
    save(tmp_path, "okapi", components, count=4, seed=9)
    parts = worn(components, tmp_path)
    texts = ["a zebra", "a cat", "an okapi and a zebra", "zebras"]
    together = embeds(parts, *texts)
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(row.tokens, embeds(parts, text)[0].tokens)
    for i, plain in enumerate(embeds(components, *texts)):
        # a word that only begins like a name is no name
        assert torch.allclose(together[i].tokens, plain.tokens, atol=1e-5) == (i in (1, 3))


@torch.inference_mode()
def test_a_name_is_found_in_any_case_and_takes_its_emphasis(sd: Components, tmp_path: Path) -> None:
    save(tmp_path, "Zebra", sd, count=2)
    parts = worn(sd, tmp_path)
    lower, upper, heavy = embeds(parts, "a zebra", "a ZEBRA", "a (zebra:1.5)", weighting=True)
    torch.testing.assert_close(lower.tokens, upper.tokens)
    shares = heavy.tokens[0, 1:6] / lower.tokens[0, 1:6]
    # the word before it, and the two places that it takes
    for place in (1, 2):
        torch.testing.assert_close(shares[0] * 1.5, shares[place], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shares[0], shares[3], rtol=1e-3, atol=1e-3)


def test_the_longest_name_wins(sd: Components, tmp_path: Path) -> None:
    save(tmp_path, "red", sd, count=1)
    save(tmp_path, "red cat", sd, count=2)
    found = EmbeddingFolder(tmp_path, widths(sd), sd.tokenizers[0]).now
    tokenizer = sd.tokenizers[0]
    ids = tokenizer("red cat red dog", add_special_tokens=False).input_ids
    dog = tokenizer("dog", add_special_tokens=False).input_ids
    assert found.replaced(ids) == [FIRST, FIRST + 1, FIRST + 2, *dog]


@torch.inference_mode()
def test_no_embedding_is_split_between_chunks(sd: Components, tmp_path: Path) -> None:
    save(tmp_path, "zebra", sd, count=10)
    parts = worn(sd, tmp_path)
    words = " ".join("a" for _ in range(70))
    (found,) = embeds(parts, f"{words} zebra", long=True)
    first, second = embeds(parts, words, "zebra")
    torch.testing.assert_close(found.tokens, torch.cat([first.tokens, second.tokens], dim=1))


@torch.inference_mode()
def test_what_changes_in_the_folder_is_seen(sd: Components, tmp_path: Path) -> None:
    save(tmp_path, "zebra", sd, count=2)
    parts = worn(sd, tmp_path)
    assert parts.embeddings is not None
    cache, prompt = PromptCache(parts), Prompt("a zebra")
    before = cache.encode([prompt])[prompt]
    assert parts.embeddings.refresh() is False
    save(tmp_path, "zebra", sd, count=2, seed=5)
    os.utime(tmp_path / "zebra.safetensors", ns=(0, 0))
    assert parts.embeddings.refresh() is True
    after = cache.encode([prompt])[prompt]
    assert not torch.allclose(before.tokens, after.tokens)
    (tmp_path / "zebra.safetensors").unlink()
    assert parts.embeddings.refresh() is True
    assert parts.embeddings.now.loaded == {}
    gone = cache.encode([prompt])[prompt]
    torch.testing.assert_close(gone.tokens, embeds(sd, "a zebra")[0].tokens)


# files


def test_every_layout_is_read(sd: Components, tmp_path: Path) -> None:
    made = vectors(2, 32)
    web_ui = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(made)},
        "name": "other",
        "step": 500,
        "sd_checkpoint": "6ce0161689",
        "sd_checkpoint_name": "v1-5",
    }
    torch.save(web_ui, tmp_path / "a.pt")
    torch.save({"<cat-toy>": made[0]}, tmp_path / "b.bin")
    save_file({"emb_params": made}, tmp_path / "c.safetensors")
    found = EmbeddingFolder(tmp_path, widths(sd), sd.tokenizers[0]).now
    assert found.skipped == {}
    assert [each.length for each in found.loaded.values()] == [2, 1, 2]
    assert torch.equal(found.loaded["a"].vectors[0], made)
    assert (found.loaded["a"].step, found.loaded["a"].checkpoint_name) == (500, "v1-5")
    assert torch.equal(found.loaded["b"].vectors[0], made[:1])


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


BROKEN: dict[str, Callable[[Path], object]] = {
    "pickled code.pt": lambda path: path.write_bytes(pickle.dumps({"*": Evil()}, 2)),
    "no file of torch.bin": lambda path: path.write_bytes(b"nothing"),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "not finite.safetensors": lambda path: save_file(
        {"emb_params": torch.full((1, 32), torch.nan)}, path
    ),
    "too many.safetensors": lambda path: save_file(
        {"emb_params": torch.zeros(MAX_VECTORS + 1, 32)}, path
    ),
    "unequal.safetensors": lambda path: save_file(
        {"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(2, 32)}, path
    ),
    "a lora.safetensors": lambda path: save_file(
        {"x.lora_down.weight": torch.zeros(1, 2), "x.lora_up.weight": torch.zeros(2, 1)}, path
    ),
    "of three axes.bin": lambda path: torch.save({"a": torch.zeros(1, 1, 32)}, path),
    "of integers.bin": lambda path: torch.save({"a": torch.zeros(1, 32).long()}, path),
    "of terabytes.pt": lambda path: torch.save(
        {"a": torch.zeros(1).half().expand(2**20, 2**20)}, path
    ),
    "sparse.pt": lambda path: torch.save({"a": torch.zeros(1, 32).to_sparse()}, path),
    "a list.pt": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_embedding_is_skipped_and_named(
    sd: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    BROKEN[name](path)
    with pytest.raises(ModelError, match=path.stem):
        read_embedding(path)
    found = EmbeddingFolder(tmp_path, widths(sd), sd.tokenizers[0]).now
    assert found.loaded == {}
    assert path.stem in found.skipped
    assert not (tmp_path / "evil").exists()


def test_an_embedding_of_another_architecture_is_skipped(
    sd: Components, xl: Components, tmp_path: Path
) -> None:
    save(tmp_path, "small", sd, count=2)
    save(tmp_path, "large", xl, count=3)
    here = EmbeddingFolder(tmp_path, widths(sd), sd.tokenizers[0]).now
    assert list(here.loaded) == ["small"]
    assert "24 and 40 wide, 32 is needed" in here.skipped["large"].reason
    there = EmbeddingFolder(tmp_path, widths(xl), xl.tokenizers[0]).now
    assert list(there.loaded) == ["large"]
    assert there.loaded["large"].width == 64


def test_a_checkpoint_is_loaded_with_a_folder_of_embeddings(
    sd: Components, sd_folder: Path, tmp_path: Path
) -> None:
    save(tmp_path, "zebra", sd, count=2)
    parts = load_components(str(sd_folder), device="cpu", embeddings=tmp_path)
    assert parts.embeddings is not None
    assert list(parts.embeddings.now.loaded) == ["zebra"]
    with pytest.raises(ModelError, match="no such folder"):
        load_components(str(sd_folder), device="cpu", embeddings=tmp_path / "nowhere")
