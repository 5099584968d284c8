"""Launches that the interpreter takes and a compiler might not: sizes of one, every mask, elements far apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

COMPILE = """
from dataclasses import replace
import torch
from tests.kernels.triton.artefacts.build import compiling
from probe.kernels.contract import Mask, Request, Scoring
from probe.kernels.triton import launch
from probe.kernels.triton.tiles import decode_tiles, forward_tiles

half, rows = torch.float16, Request(lse=True, entropy=True, distance=True, windowed_distance=1, top=1)
plain = {"scoring": Scoring(Mask(), 0.1)}

def make(*shape, dtype=half):
    return torch.empty(shape, dtype=dtype, device="meta")

def hidden(batch, heads, queries, keys):
    kept, pairs = (make(*s, dtype=torch.bool) for s in ((batch, keys), (batch, heads, queries, keys)))
    return {"scoring": Scoring(Mask(window=9, keys=kept, pairs=pairs, first_query=1, first_key=1), 0.1, 3.0)}

with compiling(80) as launches:
    one, few = (make(1, 1, n, 64) for n in (1, 512))
    launch.forward(one, one, one, sinks=None, request=rows, tiles=forward_tiles(64, half, (8, 0)), **plain)
    tiles = decode_tiles(1, 64, half, (8, 0))._replace(splits=4)
    launch.forward(one, few, few, sinks=None, request=rows, tiles=tiles, **plain)

    query, key, value = make(2, 4, 100, 80), make(2, 2, 130, 80), make(2, 2, 130, 48)
    asked = replace(rows, windowed_distance=7, sets=make(1, 4, 3, 130, dtype=torch.bool))
    tiles, sinks = forward_tiles(80, half, (8, 0), sets=1), make(4, dtype=torch.float32)
    launch.forward(query, key, value, sinks=sinks, request=asked, tiles=tiles, **hidden(2, 4, 100, 130))
    launch.top(query, key, make(2, 4, 100, 1, dtype=torch.float32), k=100, tiles=tiles, **hidden(2, 1, 100, 130))
    launch.partial(
        query, key, value, make(2, 4, 100, dtype=torch.float32), asked.sets, tiles=tiles, **hidden(1, 4, 100, 130)
    )

    apart = make(1, 2, 64, 100, dtype=torch.float32).transpose(2, 3)
    tiles = forward_tiles(64, torch.float32, (8, 0))
    launch.forward(apart, apart, apart, sinks=None, request=Request(), tiles=tiles, **plain)
print(len(launches))
"""


@pytest.mark.slow
def test_every_kind_of_launch_compiles():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["8"]
