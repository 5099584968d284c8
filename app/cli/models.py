"""`probe models`: what can be loaded here and now."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from probe.app.cli.options import shared
from probe.app.cli.tables import show, size


@click.command("models", params=shared("json"))
def command(as_json: bool) -> None:
    """List the models that can be loaded here.

    The list has the short names and the models in the local Hugging Face cache. --model also takes any Hugging Face id,
    checkpoint folder or .gguf file. HF_HOME names the cache folder; with HF_HUB_OFFLINE=1 probe never asks the hub.
    """
    from probe.loading.sources import catalog

    entries = catalog()
    if as_json:
        nothing = {"settings": {}, "manifest": None, "findings": [], "scores": {}, "figures": {}}
        click.echo(json.dumps(nothing | {"tables": {"models": [asdict(entry) for entry in entries]}}, indent=1))
        return
    rows = [(each.name, each.model, each.where, each.licence or "?", size(each.size)) for each in entries]
    show(("name", "model", "where", "licence", "size"), rows, right=("size",))
    click.echo("name: what --model takes; size: bytes of the weights on disk")
