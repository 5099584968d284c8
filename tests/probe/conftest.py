"""Tiny checkpoints on disk, real files of both formats that weights are read from, and a hub that serves them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

WORDS = ["<|end|>", "<|start|>", *sorted(map(chr, range(33, 127))), "Ġ", "Ċ", "Ġt", "he", "Ġthe"]
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
TEMPLATE = "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"


def write_gguf(path: Path, *, architecture: str = "llama", seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a one-layer Llama of random float32 weights with a byte-level vocabulary; returns the tensors by name."""
    import gguf

    width, inner, heads, kv_heads = 16, 32, 4, 2
    random = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": (len(WORDS), width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        "blk.0.attn_q.weight": (width, width),
        "blk.0.attn_k.weight": (width // heads * kv_heads, width),
        "blk.0.attn_v.weight": (width // heads * kv_heads, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_gate.weight": (inner, width),
        "blk.0.ffn_up.weight": (inner, width),
        "blk.0.ffn_down.weight": (width, inner),
    }
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_license("mit")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3] + [1] * (len(WORDS) - 2))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="session")
def gguf_writer():
    """The function that writes a tiny GGUF file."""
    return write_gguf


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A folder with a two-layer Llama of random weights in two safetensors files, its tokenizer and a model card."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="8KB")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    backend = Tokenizer(models.BPE(vocabulary, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>"
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\n", encoding="utf-8")
    return folder


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """A server on this machine that speaks as much of the hub's protocol as finding and downloading a model takes.

    models: folders by model id. gated: ids that need accepting, which nobody has.
    requests: the paths asked for. status: if set, what every request is answered with.
    """

    def __init__(self) -> None:
        self.models: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.status: int | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request."""
        self.requests.append(path)
        path = path.partition("?")[0]
        if self.status is not None:
            return self.status, {}, b"no"
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/([^/]+)(/.+)?|(/auth-check))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = about or file
        if found is None or found[1] not in self.models:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        model, revision = found[1], found[2] or "main"
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if model in self.gated and (file or (about and about[4])):
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if about and about[3]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if about:
            described = self._tree(model) if "/tree/" in path else self._card(model)
            return 200, {"Content-Type": "application/json"}, json.dumps(described).encode()
        stored = self.models[model] / found[3]
        if not stored.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        content = stored.read_bytes()
        digest = hashlib.sha256(content).hexdigest()  # of every file here; on the hub, of large ones
        return 200, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}, content

    def _card(self, model: str) -> dict[str, object]:
        files = [{"rfilename": path.name, "size": path.stat().st_size} for path in self.models[model].iterdir()]
        gated = "manual" if model in self.gated else False
        return {"id": model, "sha": COMMIT, "siblings": files, "gated": gated, "cardData": {"license": "mit"}}

    def _tree(self, model: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
            for path in self.models[model].iterdir()
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self, *, body: bool) -> None:
                status, headers, content = hub.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def do_GET(self) -> None:
                self._serve(body=True)

            def do_HEAD(self) -> None:
                self._serve(body=False)

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        return Handler


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A hub on this machine, empty, which huggingface_hub asks during the test; its cache is empty too."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    hub = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)  # keeps the first endpoint it saw
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hub
    hub.close()
