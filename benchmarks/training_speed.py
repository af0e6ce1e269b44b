"""B11: our LoRA trainer over the way of diffusers' example script, on the shipped model.

The baseline is what examples/text_to_image/train_text_to_image_lora.py of diffusers does in its
default settings, without its logging and validation: pictures are decoded, encoded by the VAE and
their captions by the text encoder within the loop, and the loss is read from the device every
step. Model, pictures, batch, rank, targets, precision, optimizer, rate and seed are the same.
Each run is a process of its own; both are timed from a model that is in memory to the adapter's
file on disk: layers put in, optimizer made, pictures read and encoded, steps, file.
`python -m benchmarks B11` runs it alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image

from benchmarks.embedded_lora import RENDERS, prompt, scenes
from benchmarks.measure import Report, at_least, at_most, interleave, machine, ratio
from configs.model import EMBEDDED_MODEL
from pipelines.components import load_components
from training.embedded_model.attributes import seeded
from training.embedded_model.render import render
from training.lora.job import LoraJob
from training.lora.source import Example
from training.lora.train import train_lora

SIDE_PX, BATCH, RANK, LR, STEPS = 128, 4, 8, 1e-3, 60
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
ROUNDS = 2
JUDGED = 64
"""Noise levels at which each adapter is judged afterwards, all with noise of their own."""


def examples() -> list[Example]:
    """PNG files of one drawn person, with captions."""
    found = []
    for number, scene in enumerate(scenes(RENDERS, seeded(0, 6))):
        buffer = io.BytesIO()
        Image.fromarray(render(scene)).resize((SIDE_PX, SIDE_PX)).save(buffer, "PNG")
        found.append(Example(f"{number}.png", buffer.getvalue(), prompt(scene)))
    return found


# --- the two ways ------------------------------------------------------------------------------


def ours(source: str, seed: int, pictures: list[Example], file: Path) -> Callable[[], None]:
    components = load_components(source, device="cpu", dtype="float32")
    job = LoraJob(
        rank=RANK,
        steps=STEPS,
        batch_size=BATCH,
        learning_rate=LR,
        resolution=SIDE_PX,
        seed=seed,
        checkpoint_every=100_000,
    )

    def run() -> None:
        work = file.parent
        result = train_lora(
            job, components, pictures, work=work, on_step=lambda _: None, should_stop=lambda: None
        )
        assert result.file
        result.file.rename(file)

    return run


def theirs(source: str, seed: int, pictures: list[Example], file: Path) -> Callable[[], None]:
    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)

    def run() -> None:
        accelerator = Accelerator(gradient_accumulation_steps=1, cpu=True)
        prepared, weights = set_up(accelerator, pipe, pictures)
        noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        frozen = pipe.vae, pipe.text_encoder, noise_scheduler
        steps_of_script(accelerator, prepared, frozen, weights)
        pipe.save_lora_weights(
            file.parent,
            unet_lora_layers=lora_state(accelerator.unwrap_model(prepared[0])),
            weight_name=file.name,
        )

    return run


def set_up(
    accelerator: Accelerator, pipe: Any, pictures: list[Example]
) -> tuple[Any, list[torch.nn.Parameter]]:
    """The script's UNet, optimizer, loader and schedule, prepared, and what is trained."""
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False)
    pipe.unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS)
    )
    weights = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=1e-2)
    dataset = [(example.data, example.caption) for example in pictures]
    loader = torch.utils.data.DataLoader(
        dataset,  # type: ignore[arg-type]
        shuffle=True,
        batch_size=BATCH,
        collate_fn=lambda rows: collated(pipe.tokenizer, rows),
    )
    lr_scheduler = get_scheduler("constant", optimizer=optimizer)
    return accelerator.prepare(pipe.unet, optimizer, loader, lr_scheduler), weights


def collated(tokenizer: Any, rows: list[tuple[bytes, str]]) -> dict[str, torch.Tensor]:
    """The script's transforms: resize, crop the middle, to -1..1; captions to tokens."""
    pixels = []
    for data, _ in rows:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
        array = np.asarray(image, dtype=np.float32) / 255
        pixels.append(torch.from_numpy((array - 0.5) / 0.5).permute(2, 0, 1))
    tokens = tokenizer(
        [caption for _, caption in rows],
        max_length=tokenizer.model_max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    return {
        "pixel_values": torch.stack(pixels).contiguous(memory_format=torch.contiguous_format),
        "input_ids": tokens.input_ids,
    }


def steps_of_script(
    accelerator: Accelerator, prepared: Any, frozen: Any, weights: list[torch.nn.Parameter]
) -> None:
    unet, optimizer, loader, lr_scheduler = prepared
    vae, text_encoder, noise_scheduler = frozen
    unet.train()
    for batch in endless(loader):
        with accelerator.accumulate(unet):
            latents = vae.encode(batch["pixel_values"]).latent_dist.sample()
            latents = latents * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(
                noise_scheduler.config.num_train_timesteps, (latents.shape[0],)
            ).long()
            noisy = noise_scheduler.add_noise(latents, noise, timesteps)
            states = text_encoder(batch["input_ids"], return_dict=False)[0]
            predicted = unet(noisy, timesteps, states, return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
            accelerator.gather(loss.repeat(BATCH)).mean().item()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()


def endless(loader: Any) -> Iterator[dict[str, torch.Tensor]]:
    """STEPS batches, epoch after epoch."""
    done = 0
    while True:
        for batch in loader:
            if done == STEPS:
                return
            done += 1
            yield batch


def lora_state(unet: Any) -> dict[str, torch.Tensor]:
    from peft.utils import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(unet)
    return diffusers.utils.convert_state_dict_to_diffusers(state)  # type: ignore[no-any-return]


WAYS = {"ours": ours, "diffusers": theirs}

# --- one run, in its process -------------------------------------------------------------------


def child(way: str, source: str, seed: int, threads: int) -> dict[str, float]:
    """Steps a second, CPU seconds a step, peak memory, and the loss before and after."""
    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    pictures = examples()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trained.safetensors"
        run = WAYS[way](source, seed, pictures, file)
        started, cpu = time.perf_counter(), time.process_time()
        run()
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before, after = judged(source, pictures, None), judged(source, pictures, file)
    return {
        "steps_per_s": STEPS / wall_s,
        "cpu_s_per_step": cpu_s / STEPS,
        "peak_mib": peak,
        "before": before,
        "after": after,
    }


@torch.no_grad()
def judged(source: str, pictures: list[Example], file: Path | None) -> float:
    """The loss of an adapter file at noise that is the same for all."""
    pipe = StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
    if file:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    batch = collated(pipe.tokenizer, [(p.data, str(p.caption)) for p in pictures])
    latents = pipe.vae.encode(batch["pixel_values"]).latent_dist.mode()
    latents = latents * pipe.vae.config.scaling_factor
    states = pipe.text_encoder(batch["input_ids"])[0]
    generator = torch.Generator().manual_seed(1)
    losses = []
    for level in torch.linspace(0, scheduler.config.num_train_timesteps - 1, JUDGED).long():
        row = len(losses) % len(pictures)
        noise = torch.randn(latents[:1].shape, generator=generator)
        noisy = scheduler.add_noise(latents[row : row + 1], noise, level[None])
        predicted = pipe.unet(noisy, level, states[row : row + 1]).sample
        losses.append(F.mse_loss(predicted, noise).item())
    return statistics.mean(losses)


# --- all runs ----------------------------------------------------------------------------------


def run(source: str, threads: int) -> Report:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}

    def contestant(way: str) -> float:
        seed = len(found[way])
        command = [sys.executable, "-m", "benchmarks.training_speed", source]
        command += ["--way", way, "--seed", str(seed), "--threads", str(threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[way].append(json.loads(done.stdout.splitlines()[-1]))
        return found[way][-1]["steps_per_s"]

    figures = interleave({way: lambda way=way: contestant(way) for way in WAYS}, ROUNDS)
    faster = ratio(figures["ours"], figures["diffusers"])
    peaks = {way: [one["peak_mib"] for one in runs] for way, runs in found.items()}
    memory = ratio(peaks["ours"], peaks["diffusers"])
    cpu = {way: [one["cpu_s_per_step"] for one in runs] for way, runs in found.items()}
    lines = [
        f"{machine()}, {threads} torch threads, {Path(source).name}, {SIDE_PX} px, batch {BATCH}, "
        f"rank {RANK} on attention, {STEPS} steps, {2 * ROUNDS} runs each, interleaved, each in a "
        "process of its own with a seed of its own.",
        "",
        "| ours over diffusers' script | ratio (90 % interval) |",
        "|---|---|",
        f"| steps a second, with preparation and file | {faster} |",
        f"| CPU time a step, theirs over ours | {ratio(cpu['diffusers'], cpu['ours'])} |",
        "",
        "| | peak memory, MiB | loss before | loss after, each run |",
        "|---|---|---|---|",
    ]
    for way, runs in found.items():
        after = ", ".join(f"{one['after']:.4f}" for one in runs)
        peak = statistics.median(peaks[way])
        lines.append(f"| {way} | {peak:.0f} | {runs[0]['before']:.4f} | {after} |")
    goals = [
        at_least("B11 training steps over diffusers' script", 1.5, faster),
        at_most("B11 peak memory over diffusers' script", 1.0, memory),
    ]
    return Report("\n".join(lines), goals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default=str(EMBEDDED_MODEL))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--way", choices=WAYS, help="one run of one way, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(child(args.way, args.source, args.seed, args.threads)))
    else:
        print(run(args.source, args.threads).text)


if __name__ == "__main__":
    main()
