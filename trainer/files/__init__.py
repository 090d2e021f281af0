"""Bytes on disk: mapped tensors, streamed safetensors, stores of what was computed before."""
