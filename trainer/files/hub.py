"""Models from the Hugging Face hub, and clear words when one cannot be had.

Configurations come first and alone, so that a wrong model costs kilobytes; then only the safetensors files of the parts
that are needed. Everything lands in the hub's own cache. Whether there is a way to the hub is asked once, by one connection:
its client would try for half a minute where the answer is known after two seconds.
"""

from __future__ import annotations

import re
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.errors import ConfigError

SMALL = ["model_index.json", "*/config.json", "scheduler/*", "tokenizer*/*"]
REACH_SECONDS = 2.5  # a way that takes longer to open does not carry gigabytes
# what needs no network, by what was to come from the hub
MODEL = "give a model on this machine, which needs no network: --model FOLDER (a diffusers folder) or --model FILE.safetensors"
VAE = "give a VAE on this machine, which needs no network: --vae FOLDER or --vae FILE.safetensors, or leave --vae out"
JUDGE = "give a judge on this machine, which needs no network: --judge clip:FOLDER or dino:FOLDER, or --judge none"


def is_id(source: str) -> bool:
    """Whether `source` has the form of a hub id (owner/name)."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) is not None


def early(model: str | None, revision: str | None, vae: str | None) -> None:
    """ConfigError where one of them is on the hub and cannot be had; before torch is imported, which takes longer than that."""
    if model and _remote(model):
        configurations(model, revision)
    if vae and _remote(vae):
        small(vae, VAE)


def _remote(source: str) -> bool:
    return is_id(source) and not Path(source).expanduser().exists()


@cache
def configurations(source: str, revision: str | None) -> Path:
    """Fetch the small files; the snapshot folder they are in."""
    return fetch(source, revision, SMALL)


@cache
def small(source: str, otherwise: str) -> Path:
    """Fetch config.json of a model that is one module, as proof that it can be had; the snapshot folder. otherwise: what
    needs no network."""
    if not is_id(source):
        raise ConfigError(f"there is no folder {source!r}", "check the path, or give a hub id (owner/name)")
    return fetch(source, None, ["config.json", "vae/config.json"], otherwise)


def stem(part: str) -> str:
    """What a part's file of weights is called in its folder of a model of diffusers, without the ending."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def weights(source: str, revision: str | None, variant: str | None, parts: Iterable[str]) -> Path:
    """Fetch the safetensors files of `parts` too; the snapshot folder."""
    dot = f".{variant}" if variant else ""
    patterns = [
        pattern
        for part in parts
        for pattern in (
            f"{part}/{stem(part)}{dot}.safetensors",
            f"{part}/{stem(part)}{dot}-*-of-*.safetensors",
            f"{part}/*.safetensors.index*.json",
        )
    ]
    return fetch(source, revision, SMALL + patterns)


def fetch(source: str, revision: str | None, patterns: list[str], otherwise: str = MODEL) -> Path:
    from huggingface_hub import constants, snapshot_download

    local = constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT)

    def call() -> Path:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, local_files_only=local))

    return _in_words(source, revision, call, otherwise)


@cache
def reachable(endpoint: str) -> bool:
    """Whether a connection to the hub, or to the proxy before it, opens. In a thread of its own: looking up a name has no
    time limit, and without a network it may be the longest part."""
    place = urlsplit(endpoint)
    proxy = None if urllib.request.proxy_bypass(place.hostname or "") else urllib.request.getproxies().get(place.scheme)
    if proxy:
        place = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    opened: list[bool] = []

    def knock() -> None:
        port = place.port or (443 if place.scheme == "https" else 80)
        try:
            socket.create_connection((place.hostname, port), REACH_SECONDS).close()
        except OSError:
            return
        opened.append(True)

    thread = threading.Thread(target=knock, name="is the hub there?", daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return bool(opened)


def _in_words(source: str, revision: str | None, call: Callable[[], Path], otherwise: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    transport: Any = HfHubHTTPError.__mro__[
        1
    ]  # the HTTP library's own base error, whichever library the hub client uses
    try:
        return call()
    except GatedRepoError as error:
        raise ConfigError(
            f"{source} asks for consent to its licence",
            f"agree on https://huggingface.co/{source}, then run `hf auth login`; or {otherwise}",
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{source} has no revision {revision!r}", "leave model.revision out, or name a branch, tag or commit of it"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"the hub has no model {source}, or it is private",
            f"check the spelling; for a private model run `hf auth login`; or {otherwise}",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConfigError(
            f"{source} is not in the local cache and the hub cannot be reached",
            f"{otherwise}; or connect once" + (" and unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else ""),
        ) from error
    except (transport, OSError) as error:
        raise ConfigError(
            f"the hub did not answer for {source} ({type(error).__name__}: {error})", f"try again later, or {otherwise}"
        ) from error
