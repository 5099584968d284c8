"""Models: `load(name)` gives a Model, whose methods run it through the attention engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from probe.engine import decoding
from probe.engine.attention import engaged, interventions_on, text_config
from probe.engine.capture import Capture, Capturing
from probe.engine.recording import AttentionStats, Recording, request_for
from probe.engine.residual import ResidualStream
from probe.engine.seam import Seam, check_seam
from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention
from probe.interventions.outputs import HeadOutputs, RecordOutputs
from probe.kernels.contract import Request
from probe.loading.sources import Source, load_weights, resolve
from probe.saving import manifest
from probe.tokens import Tokens, chat, filler, ids_hash, padded, tokenize

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

Prompt = str | Tokens | Tensor


def load(
    name: str = "llama",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: str | dict | None = None,
    trust_remote_code: bool = False,
    implementation: str = "auto",
) -> Model:
    """A model by short name, Hugging Face id, folder or .gguf file, checked at its attention seam.

    device defaults to CUDA where there is one; dtype to float32 on a CPU and the checkpoint's own elsewhere.
    implementation chooses the attention kernels ("auto", "blocked", "reference"). Raises ProbeError with one line where
    the model cannot be had or its architecture bypasses the engine.
    """
    source = resolve(name, revision=revision)
    hf, tokenizer = load_weights(
        source,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )
    return Model(hf, tokenizer, source=source, implementation=implementation)


@dataclass(frozen=True)
class Generation:
    """A continuation: text, ids [tokens] of the new tokens, the prompt, and statistics over prompt and continuation."""

    text: str
    ids: Tensor
    prompt: Tokens | None
    stats: AttentionStats | None


class Model:
    """A causal language model whose attention can be measured and changed; wraps, never copies, a transformers model.

    Construction runs the seam check. Facts: `n_layers`, `n_heads` (query heads), `n_kv_heads`, `head_dim`, `context`
    (positions), `vocab`; `hf` and `tokenizer` are transformers' own objects.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source: Source | None = None,
        implementation: str = "auto",
    ) -> None:
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.source = source
        self.name = source.name if source is not None else (hf.config.name_or_path or type(hf).__name__)
        self.implementation = implementation
        config = text_config(hf)
        self.n_layers: int = config.num_hidden_layers
        self.context: int = getattr(config, "max_position_embeddings", 1 << 62)
        self.vocab: int = config.vocab_size
        self.seam: Seam = check_seam(hf, torch.arange(1, 13)[None] % self.vocab, self.n_layers)
        self.n_heads, self.n_kv_heads, self.head_dim = self.seam.heads, self.seam.kv_heads, self.seam.head_dim

    def __repr__(self) -> str:
        return (
            f"Model({self.name}: {type(self.hf).__name__}, {self.n_layers} layers x {self.n_heads} heads "
            f"({self.n_kv_heads} KV), {self.context} positions, {str(self.dtype)[6:]} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weights, of the files they came from where those are known."""
        return manifest.weights_hash(self)

    @cached_property
    def lens(self) -> TransformerBridge:
        """A TransformerLens bridge over the same weights, built on first use; probe.doors.lens says what runs when."""
        from probe.doors.lens import lens

        return lens(self.hf, self.tokenizer, implementation=self.implementation)

    @cached_property
    def nnsight(self) -> TransformersModel:
        """An nnsight model over `hf` itself, built on first use."""
        from probe.doors.tracing import traced

        return traced(self.hf, self.tokenizer)

    @cached_property
    def stream(self) -> ResidualStream:
        """The residual stream: its layers, and hooks that read and set it; found out on first use."""
        return ResidualStream(self)

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def heads(self) -> list[Head]:
        """Every query head, layer by layer."""
        return [Head(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]

    def kv_group(self, head: Head) -> int:
        """The KV head that a query head reads."""
        return head.head // (self.n_heads // self.n_kv_heads)

    def tokens(self, text: str, *, bos: bool | None = None) -> Tokens:
        """Token ids with character offsets; bos None follows the tokenizer. The one way in which ids are made."""
        return tokenize(self.tokenizer, text, bos=bos)

    def chat(self, user: str, *, system: str | None = None) -> str:
        """The prompt that asks `user` in the model's chat template, ending where the answer begins."""
        return chat(self.tokenizer, user, system=system)

    # --- running -----------------------------------------------------------------------------------------------------

    @contextmanager
    def recording(
        self,
        request: Request | Iterable[str],
        *,
        layers: Sequence[int] | None = None,
        sets: Mapping[str, Iterable[int]] | None = None,
    ) -> Iterator[Recording]:
        """Record statistics of every forward pass inside the context; read them with `.stats()` afterwards."""
        ready, names = request_for(request, sets=sets, length=self.context)
        recording = Recording(ready, layers=self._layers(layers), sets=names)
        with engaged(self.hf, observers=(recording,), implementation=self.implementation):
            yield recording

    @contextmanager
    def intervene(self, *interventions: Intervention) -> Iterator[None]:
        """Apply interventions, in order, to every forward pass and generation inside the context."""
        for intervention in interventions:
            for head in intervention.heads_named:
                if not (0 <= head.layer < self.n_layers and 0 <= head.head < self.n_heads):
                    raise UsageError(
                        f"{head} does not exist: {self.name} has layers 0..{self.n_layers - 1} "
                        f"and heads 0..{self.n_heads - 1}"
                    )
        with engaged(self.hf, interventions=interventions, implementation=self.implementation):
            yield

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The interventions in force here, in their order."""
        return interventions_on(self.hf)

    @torch.no_grad()
    def run_with_stats(
        self,
        prompt: Prompt | Sequence[str],
        *,
        stats: Iterable[str] | Request = ("lse", "entropy", "distance", "top"),
        layers: Sequence[int] | None = None,
        queries: range | None = None,
        sets: Mapping[str, Iterable[int]] | None = None,
        window: int = 10,
        top: int = 1,
        pooled: int = 512,
        logits_to_keep: int = 0,
        padding_side: str = "left",
    ) -> tuple[Tensor, AttentionStats]:
        """Logits [batch, tokens, vocab] and the attention statistics of one forward pass.

        prompt: text, Tokens, ids [tokens] or [batch, tokens], or several texts (padded on `padding_side`).
        stats: names (lse, entropy, distance, windowed_distance, top, mass, partial, received, pooled) or a Request.
        layers: which layers to record (all). queries: which query positions to keep and, for `received`, to average.
        sets: key positions by name, for mass and partial. window: W of windowed_distance. top: how many top keys.
        logits_to_keep: only the last so many positions' logits (0 keeps all; 8,192 x vocabulary logits are gigabytes).
        Raises UsageError for a prompt beyond the context, an unknown layer or statistic.
        """
        ids, padding = self._batch(prompt, padding_side)
        if queries is not None and not (queries.step == 1 and 0 <= queries.start < queries.stop <= ids.shape[1]):
            raise UsageError(f"queries must be a contiguous range within 0..{ids.shape[1]}, got {queries}")
        request, names = request_for(
            stats, sets=sets, length=ids.shape[1], queries=queries, window=window, top=top, pooled=pooled
        )
        recording = Recording(request, layers=self._layers(layers), sets=names)
        with engaged(self.hf, observers=(recording,), implementation=self.implementation):
            logits = self._forward(ids, padding, logits_to_keep=logits_to_keep)
        return logits, recording.stats(queries=queries)

    def logits(
        self,
        prompt: Prompt | Sequence[str],
        *,
        padding: Tensor | None = None,
        logits_to_keep: int = 0,
        padding_side: str = "left",
    ) -> Tensor:
        """Logits [batch, tokens, vocab], of the last `logits_to_keep` positions only where it is not 0.

        padding: [batch, tokens], True for tokens, where `prompt` is a padded batch of ids. Gradients flow where the
        caller enables them, to the gates of interventions too.
        """
        ids, padding = self._batch(prompt, padding_side, padding)
        with engaged(self.hf, implementation=self.implementation):
            return self._forward(ids, padding, logits_to_keep=logits_to_keep)

    @torch.no_grad()
    def generate(
        self,
        prompt: Prompt,
        *,
        stats: Iterable[str] | Request | None = None,
        layers: Sequence[int] | None = None,
        sets: Mapping[str, Iterable[int]] | None = None,
        window: int = 10,
        top: int = 1,
        max_new_tokens: int = 64,
        **options: object,
    ) -> Generation:
        """A continuation by transformers' `generate`, greedy unless `options` say otherwise, with statistics if asked.

        Statistics cover the prompt and each generated token but the last, which is never a query.
        """
        ids, _ = self._batch(prompt, "left")
        if ids.shape[0] != 1:
            raise UsageError(f"generate takes one prompt, got a batch of {ids.shape[0]}")
        self._fits(ids.shape[1] + max_new_tokens)
        options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None} | options
        recording = None
        if stats is not None:
            request, names = request_for(stats, sets=sets, length=ids.shape[1] + max_new_tokens, window=window, top=top)
            recording = Recording(request, layers=self._layers(layers), sets=names)
        observed = (
            nullcontext()
            if recording is None
            else engaged(self.hf, observers=(recording,), implementation=self.implementation)
        )
        with observed:
            output = self.hf.generate(  # pyright: ignore[reportCallIssue]  # transformers types it as a Tensor
                ids.to(self.device),
                attention_mask=torch.ones_like(ids, device=self.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=filler(self.tokenizer),
                **options,
            )
        new = output[0, ids.shape[1] :].cpu()
        return Generation(
            text=str(self.tokenizer.decode(new, skip_special_tokens=True)),
            ids=new,
            prompt=prompt if isinstance(prompt, Tokens) else None,
            stats=None if recording is None else recording.stats(),
        )

    def prefill(self, ids: Tensor, *, cache: DynamicCache | None = None) -> DynamicCache:
        """The key-value cache after `ids` [tokens] or [batch, tokens], continuing `cache`; computes no logits."""
        rows = ids if ids.ndim == 2 else ids[None]
        self._fits(rows.shape[1] + (0 if cache is None else cache.get_seq_length()))
        return decoding.prefill(self.hf, rows, cache=cache)

    def greedy(
        self, cache: DynamicCache, last: Tensor, *, max_new_tokens: int, stop: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        """Greedy ids of each row; the cache holds the prompt without its last token, which is `last` [batch, 1]."""
        return decoding.greedy(self.hf, cache, last, max_new_tokens=max_new_tokens, stop=stop)

    @torch.no_grad()
    def head_outputs(
        self,
        prompt: Prompt | Sequence[str],
        *,
        padding: Tensor | None = None,
        layers: Sequence[int] | None = None,
        padding_side: str = "left",
    ) -> HeadOutputs:
        """z of every head of one forward pass, [batch, heads, tokens, value_dim] by layer: for patching and means.

        padding: [batch, tokens], True for tokens, where `prompt` is a padded batch of ids.
        """
        ids, padding = self._batch(prompt, padding_side, padding)
        record = RecordOutputs(self._layers(layers))
        with engaged(self.hf, interventions=(record,), implementation=self.implementation):
            self._forward(ids, padding, logits_to_keep=1)
        hashes = [prompt.hash] if isinstance(prompt, Tokens) else [ids_hash(row) for row in ids]
        return record.outputs(hashes)

    # --- captures ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def capture(
        self, prompt: Prompt, *, layers: Sequence[int] | None = None, folder: Path | str | None = None
    ) -> Capture:
        """q, k and lse of every layer of one sequence; with `folder`, written layer by layer and memory-mapped."""
        ids, _ = self._batch(prompt, "left")
        if ids.shape[0] != 1:
            raise UsageError(f"a capture is of one sequence, got a batch of {ids.shape[0]}")
        target = None if folder is None else Path(folder)
        if target is not None:
            target.mkdir(parents=True, exist_ok=True)
        observer = Capturing(layers=self._layers(layers), folder=target)
        with engaged(self.hf, observers=(observer,), implementation=self.implementation):
            self._forward(ids, None, logits_to_keep=1)
        strings = self.tokenizer.convert_ids_to_tokens(ids[0].tolist())
        if isinstance(prompt, Tokens):
            strings = prompt.strings()
        return observer.finish(model=self.name, ids=ids[0].cpu(), strings=strings)

    def attention_tile(
        self, capture: Capture, head: Head | tuple[int, int], rows: range | slice, cols: range | slice
    ) -> Tensor:
        """Exact attention weights [rows, cols] of one head, from a capture."""
        return capture.tile(Head(*head), rows, cols)

    def pooled_map(self, capture: Capture, head: Head | tuple[int, int], *, size: int = 512) -> Tensor:
        """The head's whole map, max-pooled to at most [size, size], from a capture."""
        return capture.pooled(Head(*head), size=size)

    # --- at the door -------------------------------------------------------------------------------------------------

    def _layers(self, layers: Sequence[int] | None) -> list[int]:
        if layers is None:
            return list(range(self.n_layers))
        wrong = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if wrong or not layers:
            got = f"layer {wrong[0]}" if wrong else "none"
            raise UsageError(f"layers must be within 0..{self.n_layers - 1} of {self.name}, got {got}")
        return sorted(set(layers))

    def _fits(self, length: int) -> None:
        if length > self.context:
            raise UsageError(
                f"the prompt needs {length} positions and {self.name} has {self.context}: shorten it (--max-tokens)"
            )

    def _batch(
        self, prompt: Prompt | Sequence[str], padding_side: str, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Ids [batch, tokens] and the padding mask of a batch of different lengths, the given one for given ids."""
        if isinstance(prompt, str):
            prompt = self.tokens(prompt)
        if isinstance(prompt, Tokens):
            prompt = prompt.ids
        if isinstance(prompt, Tensor):
            ids = prompt if prompt.ndim == 2 else prompt[None]
            if padding is not None and padding.shape != ids.shape:
                raise UsageError(f"padding must be {list(ids.shape)} like the ids, got {list(padding.shape)}")
        elif padding is not None:
            raise UsageError("padding goes with ids; texts are padded here")
        else:
            ids, padding = padded([self.tokens(text).ids for text in prompt], self.tokenizer, padding_side)
        if ids.dtype != torch.int64 or ids.numel() == 0:
            raise UsageError(f"expected at least one token id (int64), got {list(ids.shape)} of {ids.dtype}")
        self._fits(ids.shape[1])
        return ids, padding

    def _forward(self, ids: Tensor, padding: Tensor | None, *, logits_to_keep: int) -> Tensor:
        accepted = inspect.signature(self.hf.forward).parameters
        options: dict[str, object] = {}
        if padding is not None:
            padding = padding.to(self.device)
            options["attention_mask"] = padding
            if "position_ids" in accepted:  # learned positions must not count the padding
                options["position_ids"] = (padding.long().cumsum(-1) - 1).clamp(min=0)
        if logits_to_keep and "logits_to_keep" in accepted:
            options["logits_to_keep"] = logits_to_keep
        logits = self.hf(input_ids=ids.to(self.device), use_cache=False, **options).logits
        return logits[:, -logits_to_keep:] if logits_to_keep else logits
