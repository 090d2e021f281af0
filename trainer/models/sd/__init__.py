"""Stable Diffusion 1.x, 2.x and XL: a UNet over the latents of a VAE, told by CLIP what to draw."""
