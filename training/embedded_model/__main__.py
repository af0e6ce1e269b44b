"""`python -m training.embedded_model STAGE...`: make the shipped checkpoint, resumable at any time.

Stages in order: data, vae, latents, decoder, text, unet64, unet128, export, probe; `all` runs them
all. `probe` makes the judge of the benchmarks, no part of the checkpoint.
"""

import argparse
from pathlib import Path

import torch

from training.embedded_model import data, export, probe, text, unet, vae

STAGES = ("data", "vae", "latents", "decoder", "text", "unet64", "unet128", "export", "probe")
# Samples to train on (for `data`: pictures to render). Given with --samples, one stage may go on.
SAMPLES = {
    "data": 28_000,
    "vae": 66_000,
    "decoder": 36_000,
    "text": 75_000,
    "unet64": 150_000,
    "unet128": 300_000,
    "probe": 80_000,
}
BATCH = {"vae": 16, "decoder": 16, "text": 16, "unet64": 128, "unet128": 96, "probe": 64}


def parser() -> argparse.ArgumentParser:
    root = Path(__file__).parents[2]
    out = argparse.ArgumentParser(prog="python -m training.embedded_model", description=__doc__)
    out.add_argument("stages", nargs="+", choices=(*STAGES, "all"))
    out.add_argument("--work", type=Path, default=root / "data" / "embedded_model")
    out.add_argument("--out", type=Path, default=root / "pipelines" / "embedded")
    out.add_argument("--device", default="cpu", help="cpu, or cuda (then in bfloat16)")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--threads", type=int, default=2, help="CPU threads")
    out.add_argument("--samples", type=int, help="train the named stage up to this many samples")
    out.add_argument("--batch", type=int, help="batch size of the named stage")
    return out


def run(stage: str, args: argparse.Namespace) -> None:
    """One stage; what it already did is not done again."""
    device = torch.device(args.device)
    samples = args.samples or SAMPLES.get(stage, 0)
    batch = args.batch or BATCH.get(stage, 0)
    if stage == "data":
        data.make(args.work, samples, args.seed)
    elif stage == "vae":
        vae.train(args.work, samples, batch, args.seed, device)
    elif stage == "latents":
        vae.finish(args.work, device)
        for resolution in unet.RESOLUTIONS.values():
            for size in (resolution.size, *resolution.others):
                unet.encoded(args.work, size, args.seed, device)
    elif stage == "decoder":
        drawn = unet.RESOLUTIONS["unet128"]
        sizes = (drawn.size, drawn.size, drawn.others[0])  # the usual one twice as often
        encoded = [unet.encoded(args.work, size, args.seed, device) for size in sizes]
        vae.train_decoder(args.work, encoded, samples, batch, args.seed, device)
    elif stage == "text":
        text.train(args.work, samples, batch, args.seed, device)
    elif stage == "export":
        export.export(args.work, args.out, args.seed)
    elif stage == "probe":
        probe.train(args.work, samples, batch, args.seed, device)
    else:
        unet.train(args.work, stage, samples, batch, args.seed, device)


def main() -> None:
    args = parser().parse_args()
    stages = STAGES if "all" in args.stages else args.stages
    if len(stages) > 1 and (args.samples or args.batch):
        raise SystemExit("--samples and --batch go with one named stage")
    torch.set_num_threads(args.threads)
    for stage in stages:
        run(stage, args)


if __name__ == "__main__":
    main()
