"""Stage `text`: the tokenizer, the CLIP text encoder, and its short training on captions alone.

The encoder first learns to name every attribute of a caption (linear heads on the end-of-text and
padding positions, cross-entropy). That takes minutes, because no picture is involved, and then the
UNet only has to find the colours in the states it is given instead of learning to read as well.
Which colour goes with which part is learned last: after 45,000 captions (loss 0.74 -> 0.5).
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.embedded_model.attributes import (
    BEARDS,
    CLOTHES,
    COLOURS,
    EXPRESSIONS,
    EYES,
    GLASSES,
    HAIR_COLOURS,
    HAIR_TOPS,
    HAT_TOPS,
    SKINS,
    Attributes,
    sample,
    seeded,
)
from training.embedded_model.captions import caption
from training.embedded_model.loop import Progress, Stage

MAX_TOKENS = 77
SHORT_TOKENS = 36  # enough for 19 captions in 20; the 64-px stage trains on these positions only
WIDTH = 192
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"

_NONE = ("none",)
CLASSES: dict[str, tuple[str, ...]] = {
    "background": tuple(COLOURS),
    "skin": tuple(SKINS),
    "hair": _NONE + tuple(HAIR_TOPS),
    "hair_colour": tuple(HAIR_COLOURS),
    "hat": _NONE + tuple(HAT_TOPS),
    "hat_colour": _NONE + tuple(COLOURS),
    "glasses": _NONE + tuple(GLASSES),
    "beard": _NONE + tuple(BEARDS),
    "clothes": tuple(CLOTHES),
    "clothes_colour": tuple(COLOURS),
    "expression": tuple(EXPRESSIONS),
    "eyes": tuple(EYES),
}


def build_tokenizer(seed: int) -> CLIPTokenizer:
    """A real CLIP BPE tokenizer (lower case, byte level, "</w>" word ends) with a small vocabulary.

    The merges are learned from captions, so every word of theirs is one token; any other text, in
    any script, falls into bytes and can never be unknown.
    """
    from tokenizers import models, trainers

    rng = seeded(seed)
    base = CLIPTokenizer()  # the empty one, for its normaliser and its pre-tokeniser
    backend = base.backend_tokenizer
    words: Counter[str] = Counter()
    for _ in range(20000):
        text = backend.normalizer.normalize_str(caption(sample(rng), rng))
        ascii_text = text.encode("ascii", "ignore").decode()  # other scripts stay bytes
        words.update(w for w, _ in backend.pre_tokenizer.pre_tokenize_str(ascii_text))
    frequent = {w: n for w, n in words.items() if n >= 5}  # drops the noise words
    alphabet = byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=2, initial_alphabet=alphabet, end_of_word_suffix="</w>",
        show_progress=False,
    )  # fmt: skip
    learner = type(backend)(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = _whitespace()
    learner.train_from_iterator((f"{w} " * n for w, n in sorted(frequent.items())), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, _BOS, _EOS]))}
    return CLIPTokenizer(
        vocab=vocab, merges=[tuple(pair) for pair in merges], model_max_length=MAX_TOKENS
    )


def _whitespace() -> object:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.WhitespaceSplit()


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of GPT-2's byte-level encoding, sorted."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """3 layers of width 192."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_heads() -> nn.ModuleDict:
    """One linear classifier an attribute, on a state of width `WIDTH`."""
    return nn.ModuleDict({name: nn.Linear(WIDTH, len(words)) for name, words in CLASSES.items()})


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], length: int) -> torch.Tensor:
    """int64 (n, length), padded with end-of-text as Stable Diffusion does."""
    encoded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    ids: torch.Tensor = encoded.input_ids
    return ids


def labels(batch: list[Attributes]) -> dict[str, torch.Tensor]:
    """Attribute name -> class numbers, int64 (n,)."""
    rows = [asdict(a) for a in batch]
    return {
        name: torch.tensor([words.index(row[name]) for row in rows])
        for name, words in CLASSES.items()
    }


def head_loss(
    heads: nn.Module,
    states: torch.Tensor,
    ids: torch.Tensor,
    targets: dict[str, torch.Tensor],
    eos: int,
) -> torch.Tensor:
    """Mean cross-entropy over the attributes, read at the first end-of-text and the last position.

    `states` is (n, length, WIDTH). Attributes a caption leaves out only add a constant.
    """
    first = (ids == eos).int().argmax(1)
    read = torch.cat([states[torch.arange(len(ids)), first], states[:, -1]])
    losses = [
        F.cross_entropy(heads.get_submodule(name)(read), t.repeat(2)) for name, t in targets.items()
    ]
    return torch.stack(losses).mean()


def load_tokenizer(folder: Path, seed: int) -> CLIPTokenizer:
    """The tokenizer saved in the work folder, made on first use."""
    if not (folder / "tokenizer").exists():
        build_tokenizer(seed).save_pretrained(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def load_encoder(folder: Path, tokenizer: CLIPTokenizer, device: torch.device) -> CLIPTextModel:
    """The EMA weights of the `text` stage, in eval mode."""
    encoder = build_encoder(tokenizer)
    ema = torch.load(folder / "text.pt", map_location="cpu", weights_only=True)["ema"]
    encoder.load_state_dict(
        {k.removeprefix("text."): v for k, v in ema.items() if k.startswith("text.")}
    )
    return encoder.to(device).eval()


def train(folder: Path, horizon: int, batch: int, seed: int, device: torch.device) -> None:
    """Train encoder and heads on captions to `horizon` samples, resuming from `text.pt`."""
    tokenizer = load_tokenizer(folder, seed)
    torch.manual_seed(seed)
    modules = nn.ModuleDict({"text": build_encoder(tokenizer), "heads": build_heads()}).to(device)
    stage = Stage(folder / "text.pt", modules, 1e-3, horizon, batch, seed, device)
    stage.resume()
    progress = Progress("text", stage)
    while stage.samples < horizon:
        rng = seeded(seed, stage.samples)
        avatars = [sample(rng) for _ in range(batch)]
        # The padding positions up to 77 are only needed now and then; short batches are faster.
        length = MAX_TOKENS if rng.random() < 0.1 else SHORT_TOKENS
        ids = tokenize(tokenizer, [caption(a, rng) for a in avatars], length).to(device)
        targets = {name: t.to(device) for name, t in labels(avatars).items()}
        states = stage.modules["text"](ids).last_hidden_state
        loss = head_loss(stage.modules["heads"], states, ids, targets, tokenizer.eos_token_id)
        stage.update(loss)
        progress.add(loss=loss)
        if progress.due():
            stage.save()
    stage.save()
