"""Diffusion transformers that match flows: what they have in common, and a family each."""
