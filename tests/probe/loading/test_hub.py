from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from probe.errors import ProbeError
from probe.loading import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cut_off(fake_hub, monkeypatch):
    """No network: the endpoint refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        yield fake_hub


@pytest.mark.parametrize("name", ["gpt2", "org/model", "org/Model-1.5_b", "a"])
def test_model_ids(name):
    assert hub.is_model_id(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "/a", "a/", "../a", "a\\b", "org/mo..del", "é"])
def test_not_model_ids(name):
    assert not hub.is_model_id(name)


def test_a_model_is_pinned_to_its_commit_in_one_request(fake_hub, tiny_checkpoint):
    fake_hub.models["org/tiny"] = tiny_checkpoint
    found = hub.find("org/tiny")
    assert (found.model, found.commit, found.licence, found.reached) == ("org/tiny", COMMIT, "mit", True)
    assert found.files["config.json"] == (tiny_checkpoint / "config.json").stat().st_size
    asked = [path.partition("?")[0] for path in fake_hub.requests if path.startswith("/api/models")]
    assert asked == ["/api/models/org/tiny"]
    assert hub.find("org/tiny", revision=COMMIT).commit == COMMIT


def test_no_such_model(fake_hub):
    with pytest.raises(ProbeError, match=r"no model 'org/typo' that you may see: check the spelling, or set HF_TOKEN"):
        hub.find("org/typo")


def test_no_such_revision(fake_hub, tiny_checkpoint):
    fake_hub.models["org/tiny"] = tiny_checkpoint
    with pytest.raises(ProbeError, match="org/tiny has no revision 'v9'"):
        hub.find("org/tiny", revision="v9")


def test_a_gated_model(fake_hub, tiny_checkpoint):
    fake_hub.models["org/closed"] = tiny_checkpoint
    fake_hub.gated.add("org/closed")
    with pytest.raises(
        ProbeError, match=r"gated: accept its terms at https://huggingface.co/org/closed, then set HF_TOKEN"
    ):
        hub.find("org/closed")


def test_a_failing_hub(fake_hub):
    fake_hub.status = 500
    with pytest.raises(ProbeError, match=r"not in the local cache and the hub answered with an error: .*500"):
        hub.find("org/tiny")


def test_no_network_is_noticed_at_once(cut_off):
    start = time.monotonic()
    with pytest.raises(ProbeError, match="'org/tiny' is not in the local cache and the hub cannot be reached"):
        hub.find("org/tiny")
    assert time.monotonic() - start < 5


def test_a_hub_that_does_not_answer(fake_hub, monkeypatch):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setattr(hub, "_SECONDS", 0.5)
        start = time.monotonic()
        with pytest.raises(ProbeError, match=r"cannot be reached: .*timed out"):
            hub.find("org/tiny")
        assert time.monotonic() - start < 5


def test_offline_by_choice(fake_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ProbeError, match="'org/tiny' at revision 'v1' is not in the local cache and HF_HUB_OFFLINE is set"
    ):
        hub.find("org/tiny", revision="v1")
    assert fake_hub.requests == []


@pytest.mark.parametrize("why", ["offline", "network", "failing"])
def test_without_the_hub_the_cache_answers(cut_off, tiny_checkpoint, monkeypatch, why):
    cut_off.models["org/tiny"] = tiny_checkpoint
    nowhere = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", cut_off.url)
    snapshot_download("org/tiny")
    if why == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif why == "failing":
        cut_off.status = 503
    else:
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    found = hub.find("org/tiny")
    assert (found.commit, found.licence, found.reached) == (COMMIT, "mit", False)
    assert found.files["config.json"] == (tiny_checkpoint / "config.json").stat().st_size
    with pytest.raises(ProbeError, match="'org/tiny' at revision 'v1' is not in the local cache"):
        hub.find("org/tiny", revision="v1")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ('---\ntags:\n- x\nlicense: "llama3.2"\n---\ntext', "llama3.2"),
        ("---\ntags: x\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_card(tmp_path: Path, card, licence):
    (tmp_path / "README.md").write_text(card)
    assert hub.card_licence(tmp_path) == licence
    shutil.rmtree(tmp_path)
    assert hub.card_licence(tmp_path) is None
