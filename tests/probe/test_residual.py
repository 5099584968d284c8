"""The residual stream of tiny models: what is read adds up, what is set is read, and hooks are gone afterwards."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from probe import Model, UsageError
from probe.residual import SPLIT, ResidualStream
from tests.probe.architectures import BUILDERS, build

IDS = torch.arange(3, 14)[None]


def model(name: str) -> Model:
    return Model(build(name), PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast))
