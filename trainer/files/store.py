"""A folder of small tensor files, each named by the hash of everything its content depends on.

A file is there completely or not at all (`whole`), and says which name it was written under and the checksum of what it
holds. One that cannot be read back, lies under another name, or holds anything else than was written counts as missing and
is made again: a flipped bit in a latent would train on a wrong picture without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.files.mapped import forget
from trainer.files.whole import tidy, whole

if TYPE_CHECKING:
    from hashlib import _Hash as Hash


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
            _add(digest, name, tensor)
            forget(tensor)
    return digest.hexdigest()[:32]


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes, in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


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
            with safe_open(self.path(name), "pt") as file:
                marks = file.metadata() or {}
                found = {tensor: file.get_tensor(tensor) for tensor in tensors} if marks else {}
        except (SafetensorError, OSError):
            marks, found = {"key": "damaged"}, {}
        if found and marks == self._marks(name, found):
            return found
        self.remade += bool(marks)  # an older version left none: nothing is wrong with such a file, nothing can be told
        return None

    @staticmethod
    def _marks(name: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """What a file says about itself."""
        return {"key": name, "checksum": checksum(tensors)}

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        if self.folder is None:
            return
        try:
            with whole(self.path(name)) as part:
                save_file({k: v.contiguous() for k, v in tensors.items()}, part, self._marks(name, tensors))
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"cannot write to the cache folder {self.folder} ({error})",
                "free some disk space, or name another folder with --cache_dir",
            ) from error
