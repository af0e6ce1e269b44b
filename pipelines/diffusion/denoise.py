"""One step of many requests: a UNet forward over all their rows, then each one's sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from pipelines.components import Components
from pipelines.control.residual import Control, control_residuals
from pipelines.diffusion.deep_cache import keep_features, reusing_forward
from pipelines.diffusion.state import ImageState, non_finite
from pipelines.diffusion.tiling import tiled
from pipelines.ip_adapter.attention import RowImages, image_prompts
from pipelines.lane import deal, in_lanes
from pipelines.lora.bank import LoraBank
from pipelines.prompt import PromptEmbeds
from pipelines.sampler_table import SamplerState, advance_rows


class Row(NamedTuple):
    """One row of the UNet's batch. Whatever differs between rows is found through it."""

    state: ImageState
    embeds: PromptEmbeds
    images: RowImages
    place: int
    """Among the rows of its state's deep features."""
    controls: tuple[Control, ...]


def denoise(
    parts: Components,
    bank: LoraBank,
    states: Sequence[ImageState],
    *,
    most_rows: int | None = None,
    lanes: int = 1,
) -> list[torch.Tensor]:
    """The guided noise prediction of each state, 1 x C x H x W.

    All states share one batch key; full and shallow ones have a forward each, and more where they
    have more than `most_rows`. A state whose prediction is not finite gets its `error`. More
    `lanes` than one only where all states have them.
    """
    # told apart first: a full forward gives a state features, and it must not run again with them
    kinds: tuple[list[int], list[int]] = ([], [])
    for i, state in enumerate(states):
        kinds[state.shallow].append(i)
    predicted: dict[int, torch.Tensor] = {}
    for alike in filter(None, kinds):
        noise_preds = _denoise_alike(parts, bank, [states[i] for i in alike], most_rows, lanes)
        predicted |= zip(alike, noise_preds, strict=True)
    return [predicted[i] for i in range(len(states))]


def has_lanes(state: ImageState) -> bool:
    """Whether its rows can be in different lanes: what it needs of the UNet is each row's own."""
    whole = state.request.deep_cache > 1 or state.images or state.negative_images
    return not whole


def _denoise_alike(
    parts: Components,
    bank: LoraBank,
    states: Sequence[ImageState],
    most_rows: int | None,
    lanes: int,
) -> list[torch.Tensor]:
    order = sorted(range(len(states)), key=lambda i: not states[i].guided)
    ordered = [states[i] for i in order]
    # rows: the unconditional of those with guidance, then the conditionals of all
    rows = [
        Row(s, s.negative.at(s.step_index), s.negative_images, 0, _both_sides(s.active_controls))
        for s in ordered
        if s.guided and s.negative is not None
    ]
    pairs = len(rows)
    rows += [
        Row(s, one.at(s.step_index), s.images, place, s.active_controls)
        for s in ordered
        for place, one in enumerate(s.positive, -len(s.positive))
    ]
    size = most_rows or len(rows)
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    forwards = [_forward(parts, bank, chunk, lanes) for chunk in chunks]
    noise = torch.cat([output for output, _ in forwards])
    keep_features([row.state for row in rows], [row for _, deep in forwards for row in deep])
    uncond, cond = noise[:pairs], _joined(ordered, noise[:pairs], noise[pairs:])
    predicted = torch.cat([_guide(ordered[:pairs], uncond, cond[:pairs]), cond[pairs:]])
    finite = torch.isfinite(predicted).flatten(1).all(1).tolist()
    result: list[torch.Tensor] = [predicted] * len(states)
    for row, i in enumerate(order):
        result[i] = predicted[row : row + 1]
        if not finite[row]:
            states[i].error = non_finite(states[i], "the UNet")
    return result


def _forward(
    parts: Components, bank: LoraBank, rows: Sequence[Row], lanes: int
) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
    """The output of one forward, and deep features where a state will reuse some; both by row."""
    count = len(rows)
    if parts.compiled:
        rows = [*rows, *[rows[-1]] * (row_bucket(count) - count)]
    states = {id(row.state): row.state for row in rows}
    inputs = {key: _model_input(state, parts.dtype) for key, state in states.items()}
    sample = torch.cat([inputs[id(row.state)] for row in rows])
    steps = [row.state.sampler.timestep for row in rows]
    times = torch.tensor(steps, dtype=torch.float32, device=parts.device)
    conditions = _conditions(rows)
    conditions |= _residuals(rows, sample, times, conditions)
    places = [(row.state, row.place) for row in rows]
    dealt = deal(len(rows), lanes)
    with (
        bank.rows("unet", [row.state.loras for row in rows], dealt),
        image_prompts([row.images for row in rows]),
        tiled(parts.unet, rows[0].state.request.tiling),
    ):
        unet = in_lanes(parts.unet, dealt)
        output, deep = reusing_forward(unet, places, sample, times, **conditions)
    return output[:count], [None] * count if deep is None else deep[:count].unbind()


def _both_sides(controls: tuple[Control, ...]) -> tuple[Control, ...]:
    """Those that guide an unconditional row, too."""
    return tuple(one for one in controls if not one.conditional_only)


def row_bucket(rows: int) -> int:
    """The rows that a compiled UNet is given: 1, 2, 4, 8, 16, then multiples of 16."""
    return 1 << (rows - 1).bit_length() if rows <= 16 else -(-rows // 16) * 16


def advance(states: Sequence[ImageState], noise_preds: Sequence[torch.Tensor]) -> None:
    """Moves each state one sampler step on; one that fails gets its `error`.

    Those with tables go on together, and fail together.
    """
    pairs = zip(states, noise_preds, strict=True)
    left = [(s, _kept(s, noise_pred)) for s, noise_pred in pairs if s.error is None]
    tables = [(s, s.sampler, p) for s, p in left if isinstance(s.sampler, SamplerState)]
    if tables:
        try:
            advance_rows([sampler for _, sampler, _ in tables], [p for *_, p in tables])
        except Exception as error:
            for state, *_ in tables:
                state.error = error
    for state, noise_pred in left:
        if state.error is None:
            _finish_step(state, noise_pred)


def _kept(state: ImageState, noise_pred: torch.Tensor) -> torch.Tensor:
    return noise_pred if state.blend is None else state.blend.output(state.sampler, noise_pred)


def _model_input(state: ImageState, dtype: torch.dtype) -> torch.Tensor:
    source = state.sampler
    scaled = source.model_input() if state.blend is None else state.blend.model_input(source)
    scaled = scaled.to(dtype)
    if state.extra_channels is None:
        return scaled
    return torch.cat([scaled, state.extra_channels], dim=1)


def _conditions(rows: Sequence[Row]) -> dict[str, Any]:
    """What the UNet is told beside latents and times."""
    conditions: dict[str, Any] = _padded_tokens([row.embeds.tokens for row in rows])
    pooled = [row.embeds.pooled for row in rows if row.embeds.pooled is not None]
    time_ids = [row.state.time_ids for row in rows if row.state.time_ids is not None]
    if pooled:
        added = {"text_embeds": torch.cat(pooled), "time_ids": torch.cat(time_ids)}
        conditions["added_cond_kwargs"] = added
    scales = [row.state.timestep_cond for row in rows if row.state.timestep_cond is not None]
    if scales:
        conditions["timestep_cond"] = torch.cat(scales)
    return conditions


def _padded_tokens(tokens: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Token embeddings of one length, with a mask of the padding only where there is some."""
    lengths = [row.shape[1] for row in tokens]
    longest = max(lengths)
    if min(lengths) == longest:
        return {"encoder_hidden_states": torch.cat(list(tokens))}
    padded = [functional.pad(row, (0, 0, 0, longest - row.shape[1])) for row in tokens]
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return {
        "encoder_hidden_states": torch.cat(padded),
        "encoder_attention_mask": real.to(padded[0].device),
    }


def _residuals(
    rows: Sequence[Row], sample: torch.Tensor, times: torch.Tensor, conditions: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """What the rows' ControlNets add to the UNet; nothing where there is none."""
    controls = [row.controls for row in rows]
    lengths = [row.embeds.tokens.shape[1] for row in rows]
    return control_residuals(controls, lengths, sample, times, conditions)


def _joined(states: Sequence[ImageState], uncond: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """One conditional row of each state, what AND joins added up by its weights.

    `uncond` is of the first states. Where there is none, the first prompt stands for it, and the
    guidance scale, which nobody applies later, is within the weights.
    """
    if all(state.plain for state in states):
        return cond
    rows = []
    parts = torch.split(cond, [len(state.positive) for state in states])
    for i, (state, mine) in enumerate(zip(states, parts, strict=True)):
        base = uncond[i : i + 1] if i < len(uncond) else mine[:1]
        if not state.plain:
            scale = 1.0 if i < len(uncond) else state.guidance_scale
            weights = _per_row([one.weight * scale for one in state.positive], mine)
            added = (weights * (mine - base)).sum(0, keepdim=True)
            mine = base + added.to(base.dtype)
        rows.append(mine)
    return torch.cat(rows)


def _guide(states: Sequence[ImageState], uncond: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance, each row by its own scale, and rescaled where a request asks."""
    scale = _per_row([state.guidance_scale for state in states], uncond)
    # rounded where a float times a half tensor is, so that half precision agrees too
    mixed = uncond + (scale * (cond - uncond)).to(uncond.dtype)
    shares = [state.request.guidance_rescale for state in states]
    if not any(shares):
        return mixed
    share = _per_row(shares, uncond)
    axes = tuple(range(1, mixed.ndim))
    deviation = cond.std(axes, keepdim=True) / mixed.std(axes, keepdim=True)
    rescaled = (share * (mixed * deviation)).to(mixed.dtype)
    rescaled = rescaled + ((1 - share) * mixed).to(mixed.dtype)
    return torch.where(share > 0, rescaled, mixed)


def _per_row(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1, 1)


def _finish_step(state: ImageState, noise_pred: torch.Tensor) -> None:
    """What each request does by itself: the step of a sampler with no table, and the blend."""
    try:
        if not isinstance(state.sampler, SamplerState):
            state.sampler.advance(noise_pred)
        if state.blend is not None:
            state.blend.finish_step(state.sampler)
        if state.done or not state.shallow:
            state.deep = None
    except Exception as error:
        state.error = error
