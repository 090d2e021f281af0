"""Whether what was read is a model: a configuration that can be understood, weights that are numbers.

A merge gone wrong, a training that diverged or a damaged download leaves NaN or infinity among the weights. Found only in
the first loss they would be blamed on the learning rate, after an hour of class images drawn from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from torch import nn

from trainer.errors import ConfigError
from trainer.files.mapped import forget

MISFITS = (
    KeyError,
    TypeError,
    AttributeError,
    ValueError,
    IndexError,
    ZeroDivisionError,
    RuntimeError,
    StrictDataclassError,
)
AGAIN = "copy or download the model again"
WHAT_WORKS = (
    "give a text-to-image model of a family that is known here (Stable Diffusion 1.x, 2.x, XL and 3.5 medium, FLUX.2 klein "
    "base, Z-Image, Lumina Image 2.0): a hub id, a diffusers folder, or one .safetensors checkpoint"
)


@contextmanager
def understood(source: str) -> Iterator[None]:
    """Where a configuration is not what it should be, this says so in one line."""
    try:
        yield
    except ConfigError:
        raise
    except MISFITS as error:
        what = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"a configuration of {source} is damaged, or of a kind that is unknown here ({type(error).__name__}: {what})",
            AGAIN,
        ) from error


def require_numbers(modules: Mapping[str, nn.Module], source: str) -> None:
    """ConfigError with the first weight that holds NaN or infinity. Pages of a file that were read go back to it."""
    for part, module in modules.items():
        for name, weight in module.named_parameters():
            if weight.is_floating_point() and not weight.detach().isfinite().all():
                held = "NaN" if weight.isnan().any() else "infinity"
                raise ConfigError(
                    f"the weights of {source} are no numbers: {part}.{name} holds {held}",
                    "download the model again, or take another one: a bad merge or a diverged training leaves such weights",
                )
            forget(weight)
