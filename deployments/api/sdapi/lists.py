"""Lists of what is here, and verbs that have nothing to do here: files are found by themselves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from deployments.api.route import OwnerDep, ServicesDep
from deployments.api.sdapi import listing, options, sampler
from deployments.api.sdapi.checkpoint import checkpoint_list, read_cards
from deployments.api.sdapi.embedding import embedding_list
from deployments.api.sdapi.extras import realesrgan_list, restorer_list, upscaler_list
from deployments.api.sdapi.route import SdapiRoute
from deployments.api.sdapi.script import script_info, script_list
from deployments.api.sdapi.vae import vae_list
from pipelines.webui.upscale import LATENT_UPSCALERS

router = APIRouter(prefix="/sdapi/v1", route_class=SdapiRoute, include_in_schema=False)

Items = list[dict[str, Any]]


@router.get("/cmd-flags")
async def cmd_flags(services: ServicesDep) -> dict[str, Any]:
    return listing.flags(services.settings)


@router.get("/samplers")
async def samplers() -> Items:
    return sampler.sampler_list()


@router.get("/schedulers")
async def schedulers() -> Items:
    return sampler.scheduler_list()


@router.get("/upscalers")
async def upscalers(services: ServicesDep) -> Items:
    return upscaler_list(services.settings)


@router.get("/realesrgan-models")
async def realesrgan_models() -> Items:
    return realesrgan_list()


@router.get("/face-restorers")
async def face_restorers(services: ServicesDep) -> Items:
    return restorer_list(services.settings)


@router.get("/latent-upscale-modes")
async def latent_upscale_modes() -> Items:
    return [{"name": name} for name in LATENT_UPSCALERS]


@router.get("/sd-models")
async def sd_models(services: ServicesDep) -> Items:
    return checkpoint_list(services.settings, await read_cards(services))


@router.get("/sd-vae")
async def sd_vae(services: ServicesDep) -> Items:
    return vae_list(services.settings)


@router.get("/hypernetworks")
@router.get("/extensions")
async def none_of_them() -> Items:
    return []


@router.get("/prompt-styles")
async def prompt_styles(services: ServicesDep) -> Items:
    return listing.style_list(services.settings)


@router.get("/embeddings")
async def embeddings(services: ServicesDep, owner: OwnerDep) -> dict[str, Any]:
    """Those of the model among the caller's options."""
    stored = await services.store.callers.options(owner)
    model = options.effective(services.settings, stored)[options.CHECKPOINT]
    return embedding_list((await read_cards(services)).get(model))


@router.get("/loras")
async def loras(services: ServicesDep, owner: OwnerDep) -> Items:
    return await listing.lora_list(services, owner)


@router.get("/memory")
async def memory() -> dict[str, Any]:
    return listing.memory()


@router.get("/scripts")
async def scripts() -> dict[str, Any]:
    return script_list()


@router.get("/script-info")
async def scripts_told() -> Items:
    return script_info()


@router.post("/refresh-checkpoints")
@router.post("/refresh-vae")
@router.post("/refresh-embeddings")
@router.post("/refresh-loras")
async def refresh() -> None:
    """Nothing to do."""


@router.post("/unload-checkpoint")
@router.post("/reload-checkpoint")
async def load() -> dict[str, Any]:
    """Nothing to do: a model without work gives its device back where its settings say so."""
    return {}
