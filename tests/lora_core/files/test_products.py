"""LoHa and LoKr go to a file and come back as they were, whole or cut into the slices that a format has."""

from __future__ import annotations

import pytest
import torch
from harness.kinds import KINDS as SAMPLES
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.files.written import FileLayer
