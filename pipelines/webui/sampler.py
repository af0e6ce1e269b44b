"""Samplers and schedulers by the names of the A1111 web UI. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

AUTOMATIC: Final = "Automatic"
"""The scheduler that the sampler has of its own."""


class WebuiSampler(NamedTuple):
    """A sampler of the web UI. Its index in a mapping is its name."""

    alias: str
    scheduler: str | None = None
    """The name of what `AUTOMATIC` means for it; None: the steps that the model was trained at."""
    second_order: bool = False
    """Two model evaluations a step, and prompts count them."""
    discards_penultimate: bool = False
    """A step more is planned, and the noise level before the last left out."""
    uses_ensd: bool = False
    """A picture's parameters tell of the eta noise seed delta."""
    brownian: bool = False
    solver: str | None = None
    by_timestep: bool = False
    """Walks over timesteps of its own: schedulers mean nothing to it."""

    @property
    def options(self) -> dict[str, str | bool]:
        """Its flags by the names that the web UI has for them; what is off is left out."""
        flags = {
            "scheduler": self.scheduler,
            "discard_next_to_last_sigma": self.discards_penultimate,
            "uses_ensd": self.uses_ensd,
            "second_order": self.second_order,
            "brownian_noise": self.brownian,
            "solver_type": self.solver,
        }
        return {name: flag for name, flag in flags.items() if flag}

    @property
    def aliases(self) -> list[str]:
        more = ["k_euler_ancestral"] if self.alias == "k_euler_a" else []
        return [self.alias, *more]


WEBUI_SAMPLERS: Final[Mapping[str, WebuiSampler]] = MappingProxyType(
    {
        "DPM++ 2M": WebuiSampler("k_dpmpp_2m", "karras"),
        "DPM++ SDE": WebuiSampler("k_dpmpp_sde", "karras", second_order=True, brownian=True),
        "DPM++ 2M SDE": WebuiSampler("k_dpmpp_2m_sde", "exponential", brownian=True),
        "DPM++ 2M SDE Heun": WebuiSampler(
            "k_dpmpp_2m_sde_heun", "exponential", brownian=True, solver="heun"
        ),
        "DPM++ 2S a": WebuiSampler("k_dpmpp_2s_a", "karras", second_order=True, uses_ensd=True),
        "DPM++ 3M SDE": WebuiSampler(
            "k_dpmpp_3m_sde", "exponential", discards_penultimate=True, brownian=True
        ),
        "Euler a": WebuiSampler("k_euler_a", uses_ensd=True),
        "Euler": WebuiSampler("k_euler"),
        "LMS": WebuiSampler("k_lms"),
        "Heun": WebuiSampler("k_heun", second_order=True),
        "DPM2": WebuiSampler("k_dpm_2", "karras", second_order=True, discards_penultimate=True),
        "DPM2 a": WebuiSampler(
            "k_dpm_2_a", "karras", second_order=True, discards_penultimate=True, uses_ensd=True
        ),
        "DPM fast": WebuiSampler("k_dpm_fast", uses_ensd=True),
        "DPM adaptive": WebuiSampler("k_dpm_ad", uses_ensd=True),
        "Restart": WebuiSampler("restart", "karras", second_order=True),
        "DDIM": WebuiSampler("ddim", by_timestep=True),
        "DDIM CFG++": WebuiSampler("ddim_cfgpp", by_timestep=True),
        "PLMS": WebuiSampler("plms", by_timestep=True),
        "UniPC": WebuiSampler("unipc", by_timestep=True),
        "LCM": WebuiSampler("k_lcm"),
    }
)
"""In the web UI's order: the first is taken for what is unknown."""


class WebuiScheduler(NamedTuple):
    """A spacing of noise levels."""

    name: str
    label: str
    alias: str | None = None
    default_rho: float = -1
    need_inner_model: bool = False


WEBUI_SCHEDULERS: Final = (
    WebuiScheduler("automatic", AUTOMATIC),
    WebuiScheduler("uniform", "Uniform", need_inner_model=True),
    WebuiScheduler("karras", "Karras", default_rho=7.0),
    WebuiScheduler("exponential", "Exponential"),
    WebuiScheduler("polyexponential", "Polyexponential", default_rho=1.0),
    WebuiScheduler("sgm_uniform", "SGM Uniform", "SGMUniform", need_inner_model=True),
    WebuiScheduler("kl_optimal", "KL Optimal"),
    WebuiScheduler("align_your_steps", "Align Your Steps"),
    WebuiScheduler("simple", "Simple", need_inner_model=True),
    WebuiScheduler("normal", "Normal", need_inner_model=True),
    WebuiScheduler("ddim", "DDIM", need_inner_model=True),
    WebuiScheduler("beta", "Beta", need_inner_model=True),
)

_BY_NAME: Final = {
    **{one.name: one for one in WEBUI_SCHEDULERS},
    **{one.label: one for one in WEBUI_SCHEDULERS},
}


def resolve_sampler(sampler: str | None, scheduler: str | None = None) -> tuple[str, str]:
    """The name of the sampler and the label of the scheduler that are meant.

    A scheduler behind the sampler's name wins; an unknown sampler is the first, an unknown
    scheduler and the sampler's own are `AUTOMATIC`.
    """
    name, behind = split_sampler(sampler or next(iter(WEBUI_SAMPLERS)))
    found = behind or _BY_NAME.get(scheduler or "", WEBUI_SCHEDULERS[0])
    if name not in WEBUI_SAMPLERS:
        name = next(iter(WEBUI_SAMPLERS))
    own = WEBUI_SAMPLERS[name].scheduler == found.name
    return name, AUTOMATIC if own else found.label


def split_sampler(name: str) -> tuple[str, WebuiScheduler | None]:
    """The name of a sampler without that of a scheduler behind it, and the scheduler."""
    found = None
    for one in WEBUI_SCHEDULERS:
        endings = [f" {word}" for word in (one.label, one.name, one.alias) if word]
        if ending := next((ending for ending in endings if name.endswith(ending)), None):
            name, found = name.removesuffix(ending), one
    return name, found


def default_eta(sampler: str) -> float:
    """Where a request leaves it open: full noise, but for the samplers by timestep none."""
    return 0.0 if WEBUI_SAMPLERS[sampler].by_timestep else 1.0


# --- image-to-image ----------------------------------------------------------------------------

MOST_SCHEDULE_STEPS: Final = 100_000
_MOST: Final = 0.999


class ImageSteps(NamedTuple):
    """Where an image-to-image begins."""

    schedule_steps: int
    """Of the whole schedule, of which the end is run."""
    encode_step: int
    """The web UI's t_enc."""

    @property
    def sigma_updates(self) -> int:
        """Sampler steps over noise levels."""
        return min(self.encode_step + 1, self.schedule_steps)

    @property
    def timestep_updates(self) -> int:
        """Sampler steps of the samplers by timestep."""
        return max(self.encode_step - 1, 0)


def image_steps(steps: int, strength: float, *, exact: bool = False) -> ImageSteps:
    """`exact` (hires fix, and an option): `steps` are run, however little the strength is.

    Raises ValueError for a strength so small that they would be of an endless schedule.
    """
    if not exact:
        return ImageSteps(steps, int(min(strength, _MOST) * steps))
    whole = steps / min(strength, _MOST) if strength > 0 else 0
    if whole > MOST_SCHEDULE_STEPS:
        raise ValueError(
            f"{steps} steps at strength {strength:g} are of a schedule of {whole:.0f}, "
            f"and {MOST_SCHEDULE_STEPS} are the most"
        )
    return ImageSteps(int(whole), steps - 1)
