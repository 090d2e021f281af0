"""Full, prior-preserving DreamBooth fine-tuning of Stable Diffusion on the card people own.

In a bare checkout `kernels/`, `benchmarks/` and `presets/` stand beside this package; in a wheel they are nested
under it. Appending the checkout root to the package path gives both the same names (`trainer.kernels`, ...).
"""

import logging
from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

# diffusers imports bitsandbytes where it is installed, which then complains on CPUs with bf16 that it found no 4-bit
# matrix product on the hub. Nothing here multiplies in 4 bits; everything else bitsandbytes has to say is passed on.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))
