"""ComfyUI without server and browser: what headless.py is made of. Nothing here is imported when ComfyUI serves."""
