"""A folder of small tensor files, each named by the hash of everything its content depends on.

A file is there completely or not at all (`whole`); one that cannot be read back, or does not hold what it should,
counts as missing and is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.files.mapped import forget
from trainer.files.whole import tidy, whole


def key(**facts: object) -> str:
    """32 hex digits that name `facts` (JSON-able values)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def module_digest(*modules: nn.Module) -> str:
    """Hash of the names, types, shapes and bytes of all weights, and of the configuration they are used with."""
    digest = hashlib.sha256()
    for module in modules:
        config: Any = module.config
        settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        plain = {
            k: v
            for k, v in settings.items()
            if not k.startswith("_") and k not in ("transformers_version", "dtype", "torch_dtype")
        }
        digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            forget(tensor)
    return digest.hexdigest()[:32]


class Store:
    """`store.get(key, names)` and `store.put(key, tensors)`; with `folder` None nothing is kept and nothing found."""

    def __init__(self, folder: Path | None):
        self.folder, self.remade = folder, 0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                tidy(folder)
            except OSError as error:
                raise ConfigError(
                    f"the cache folder {folder} cannot be made ({error.strerror})",
                    "name a writable folder with --cache_dir",
                ) from error

    def path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def get(self, name: str, tensors: tuple[str, ...]) -> dict[str, Tensor] | None:
        """The tensors stored under `name`, or None where they are missing or damaged (then `remade` counts them)."""
        if self.folder is None or not self.path(name).is_file():
            return None
        try:
            found = load_file(self.path(name))
        except (SafetensorError, OSError):
            found = {}
        if set(tensors) <= set(found):
            return found
        self.remade += 1
        return None

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        if self.folder is None:
            return
        try:
            with whole(self.path(name)) as part:
                save_file({k: v.contiguous() for k, v in tensors.items()}, part)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"cannot write to the cache folder {self.folder} ({error})",
                "free some disk space, or name another folder with --cache_dir",
            ) from error
