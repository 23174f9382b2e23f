"""Workflows as the browser saves them, made into what ComfyUI runs, and checked before anything is loaded."""
