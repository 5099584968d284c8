"""`probe models`: what can be loaded here and now."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from probe.app.cli.options import shared
from probe.app.cli.tables import show, size


@click.command("models")
@shared("json")
def command(as_json: bool) -> None:
    """List the models at hand.

    These are the short names and the local Hugging Face cache. Any Hugging Face id, checkpoint folder or .gguf file
    works as --model too. HF_HOME says where that cache is; HF_HUB_OFFLINE=1 keeps probe from asking the hub.
    """
    from probe.loading.sources import catalog

    entries = catalog()
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=1))
        return
    rows = [(each.name, each.model, each.where, each.licence or "?", size(each.size)) for each in entries]
    show(("name", "model", "where", "licence", "size"), rows, right=("size",))
