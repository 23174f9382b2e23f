"""A real ComfyUI for tests, demo and benchmarks: in process, as a server, and in a browser.

Importable as `harness` wherever the folder `tests` is the last entry of sys.path.
"""
