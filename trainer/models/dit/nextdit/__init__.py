"""Lumina Image 2.0 and Z-Image: two models on one skeleton, Lumina's NextDiT."""
