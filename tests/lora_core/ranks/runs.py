"""Runs that ranks share, and what came of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from harness.toy import CHANNELS, CONFIG, Run, config_of
from lora_loom.lora_core.adapter import TEXT_PREFIX
from lora_loom.lora_core.quiet.directions import Quieting
from lora_loom.lora_core.training.config import OptimizerConfig, TrainConfig
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.optimizers import OPTIMIZERS
from lora_loom.lora_core.training.sample import Sample
