"""Tests that need the pretend device: `LORA_LOOM_PRETEND=gpu python dev.py test tests/nodes/device`."""

from harness.inprocess import PRETEND

collect_ignore_glob = [] if PRETEND else ["test_*.py"]
