"""Tests that need the pretend device: `LORA_LOOM_PRETEND=gpu python dev.py test tests/nodes/device`."""

import os

collect_ignore_glob = [] if os.environ.get("LORA_LOOM_PRETEND") else ["test_*.py"]
