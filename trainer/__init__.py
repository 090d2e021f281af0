"""Full, prior-preserving DreamBooth fine-tuning of Stable Diffusion on the card people own.

In a bare checkout `kernels/`, `benchmarks/` and `presets/` stand beside this package; in a wheel they are nested
under it. Appending the checkout root to the package path gives both the same names (`trainer.kernels`, ...).
"""

from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))
