"""Tells what a LoRA says of itself and who vouches for it: contracts, statements, keys and takedown lists."""
