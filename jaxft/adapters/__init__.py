"""Adapters on disk: PEFT's tensors and names, conversion to and from them, and algebra on them."""
