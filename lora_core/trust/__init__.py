"""What a LoRA says of itself, and whether that can be believed."""
