"""LoRA files: `guard` refuses, `formats` reads and writes, `metadata` describes, `save` puts on disk."""
