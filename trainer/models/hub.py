"""Models from the Hugging Face hub, and clear words when one cannot be had.

Configurations come first and alone, so that a wrong model costs kilobytes; then only the safetensors files of the parts
that are needed. Everything lands in the hub's own cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from trainer.errors import ConfigError

SMALL = ["model_index.json", "*/config.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*"]
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


def is_id(source: str) -> bool:
    """Whether `source` has the form of a hub id (owner/name)."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) is not None


def configurations(source: str, revision: str | None) -> Path:
    """Fetch the small files; the snapshot folder they are in."""
    return fetch(source, revision, SMALL)


def small(source: str) -> Path:
    """Fetch config.json of a model that is one module, as proof that it can be had; the snapshot folder."""
    if not is_id(source):
        raise ConfigError(f"there is no folder {source!r}", "check the path, or give a hub id (owner/name)")
    return fetch(source, None, ["config.json", "vae/config.json"])


def weights(source: str, revision: str | None, variant: str | None, parts: Iterable[str]) -> Path:
    """Fetch the safetensors files of `parts` too; the snapshot folder."""
    dot = f".{variant}" if variant else ""
    patterns = [
        pattern
        for part in parts
        for pattern in (
            f"{part}/{STEMS[part]}{dot}.safetensors",
            f"{part}/{STEMS[part]}{dot}-*-of-*.safetensors",
            f"{part}/*.safetensors.index*.json",
        )
    ]
    return fetch(source, revision, SMALL + patterns)


def fetch(source: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    def call() -> Path:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))

    return _in_words(source, revision, call)


def _in_words(source: str, revision: str | None, call: Callable[[], Path]) -> Path:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    transport = HfHubHTTPError.__mro__[1]  # the HTTP library's own base error, whichever library the hub client uses
    elsewhere = "or give a diffusers folder or a .safetensors file on this machine"
    try:
        return call()
    except GatedRepoError as error:
        raise ConfigError(
            f"{source} asks for consent to its licence",
            f"agree on https://huggingface.co/{source}, then run `hf auth login`; {elsewhere}",
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{source} has no revision {revision!r}", "leave model.revision out, or name a branch, tag or commit of it"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"the hub has no model {source}, or it is private",
            f"check the spelling; for a private model run `hf auth login`; {elsewhere}",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConfigError(
            f"{source} is not in the local cache and the hub cannot be reached",
            f"connect once (and unset HF_HUB_OFFLINE), {elsewhere}",
        ) from error
    except (transport, OSError) as error:
        raise ConfigError(
            f"the hub did not answer for {source} ({type(error).__name__}: {error})", f"try again later, {elsewhere}"
        ) from error
