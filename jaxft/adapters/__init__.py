"""What an adapter is on disk: PEFT's tensors and names, their conversion, and algebra on them."""
