"""Formats of checkpoints: safetensors, torch, Flax's msgpack and GGUF, read and written."""
