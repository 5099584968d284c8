"""How does a user run a model with statistics and interventions? `probe.load(name)` returns a Model.

A Model owns a transformers model and its tokenizer, and runs it through the attention engine (`probe.engine`):

    model = probe.load("llama")
    logits, stats = model.run_with_stats("The capital of France is", stats=["entropy"])
    with model.intervene(probe.PruneHeads([probe.Head(18, 6)])):
        answer = model.generate("The capital of France is")

A recording sees every forward pass and generation in its context, and interventions change them. The same weights are
at hand under other libraries as `model.hf`, `model.lens` and `model.nnsight`. Every method checks its arguments before
anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from probe.engine import decoding
from probe.engine.attention import engaged, interventions_on, text_config
from probe.engine.capture import Capture, Capturing
from probe.engine.padding import forward_options
from probe.engine.recording import AttentionStats, Recording, request_for
from probe.engine.residual import ResidualStream
from probe.engine.seam import Seam, check_seam
from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention
from probe.interventions.outputs import HeadOutputs, RecordOutputs
from probe.kernels.contract import Request
from probe.loading.hashes import weights_hash
from probe.loading.sources import Source, resolve
from probe.loading.weights import load_weights
from probe.tokens import Prompt, Tokens, batch, chat, filler, ids_hash, tokenize

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge


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
    """Load a model by short name, Hugging Face id, folder or .gguf file, and check its attention seam.

    device: None takes CUDA where there is a GPU. dtype: None takes float32 on a CPU, the checkpoint's type elsewhere.
    revision: branch, tag or commit on the hub; None is the default branch. implementation: the attention kernels, one
    of those of `probe.kernels.attend`; "auto" takes the fastest that can serve. Raises ProbeError if the model cannot
    be loaded, or if its architecture bypasses the engine.
    """
    source = resolve(name, revision=revision)
    options = {"dtype": dtype, "device": device, "device_map": device_map}
    hf, tokenizer = load_weights(source, trust_remote_code=trust_remote_code, revision=revision, **options)
    return Model(hf, tokenizer, source=source, implementation=implementation)


@dataclass(frozen=True)
class Generation:
    """A continuation has its text, the ids [tokens] of its new tokens, its prompt, and statistics if requested.

    The statistics cover the prompt and every new token but the last one, which is never a query.
    """

    text: str
    ids: Tensor
    prompt: Tokens | None
    stats: AttentionStats | None


class Model:
    """A Model is a causal language model whose attention can be measured and changed.

    It wraps a transformers model without copying it, and runs the seam check when it is made. Facts: `n_layers`,
    `n_heads` (query heads), `n_kv_heads` (key-value heads), `head_dim`, `context` (positions), `vocab` (token ids).
    `hf` and `tokenizer` are transformers' objects.
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
        """Return the device of the model's weights."""
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the number format of the model's weights."""
        return self.hf.dtype

    @property
    def weights_hash(self) -> str:
        """Return the SHA-256 of the weights in hex: of the files that they came from, else of the parameters now."""
        return weights_hash(self.hf, self.source)

    @cached_property
    def lens(self) -> TransformerBridge:
        """Return a TransformerLens bridge over the same weights, built on first use (see `probe.doors.lens`)."""
        from probe.doors.lens import lens

        return lens(self.hf, self.tokenizer, implementation=self.implementation)

    @cached_property
    def nnsight(self) -> TransformersModel:
        """Return an nnsight model over `hf` itself, built on first use (see `probe.doors.tracing`)."""
        from probe.doors.tracing import traced

        return traced(self.hf, self.tokenizer)

    @cached_property
    def stream(self) -> ResidualStream:
        """Return the residual stream: its layers, and hooks that read and set it; a short pass on first use."""
        return ResidualStream(self.hf, self.seam.modules)

    @property
    def has_chat_template(self) -> bool:
        """Return whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def heads(self) -> list[Head]:
        """Return every query head, layer by layer."""
        return [Head(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]

    def kv_group(self, head: Head) -> int:
        """Return the number of the KV head that a query head reads."""
        return head.head // (self.n_heads // self.n_kv_heads)

    def tokens(self, text: str, *, bos: bool | None = None) -> Tokens:
        """Return the token ids of a text, with character offsets.

        bos: True puts a beginning-of-sequence token in front, False does not, None does what the tokenizer does.
        """
        return tokenize(self.tokenizer, text, bos=bos)

    def chat(self, user: str, *, system: str | None = None) -> str:
        """Return the prompt that asks `user` in the model's chat template; it ends where the answer begins."""
        return chat(self.tokenizer, user, system=system)

    @contextmanager
    def recording(
        self,
        request: Request | Iterable[str],
        *,
        layers: Sequence[int] | None = None,
        sets: Mapping[str, Iterable[int]] | None = None,
    ) -> Iterator[Recording]:
        """Record statistics of every forward pass inside the context; read them with `.stats()` afterwards.

        request: names of statistics, or a Request. layers: the layers to record; None is all. sets: key positions by
        name, for mass and partial.
        """
        with self._recording(request, layers, sets=sets, length=self.context) as recording:
            yield recording

    @contextmanager
    def intervene(self, *interventions: Intervention) -> Iterator[None]:
        """Apply interventions, in order, to every forward pass and generation inside the context."""
        for intervention in interventions:
            for head in intervention.heads_named:
                if not (0 <= head.layer < self.n_layers and 0 <= head.head < self.n_heads):
                    raise UsageError(
                        f"{head} does not exist in {self.name}: name a head within layers 0..{self.n_layers - 1} and "
                        f"heads 0..{self.n_heads - 1}"
                    )
        with engaged(self.hf, interventions=interventions, implementation=self.implementation):
            yield

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """Return the interventions in force here, in their order."""
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
        """Return the logits [batch, tokens, vocab] and the attention statistics of one forward pass.

        prompt: text, Tokens, ids [tokens] or [batch, tokens], or several texts, which are padded on `padding_side`.
        stats: names (lse, entropy, distance, windowed_distance, top, mass, partial, received, pooled) or a Request.
        layers: the layers to record; None is all. queries: the query positions to keep and, for `received`, to average;
        None is all. sets: key positions by name, for mass and partial. window: W of windowed_distance, in tokens.
        top: number of top keys. pooled: largest side of pooled maps. logits_to_keep: number of last positions whose
        logits are computed; 0 keeps all (8,192 positions of a whole vocabulary take gigabytes).
        Raises UsageError for a prompt beyond the context, and for an unknown layer or statistic.
        """
        ids, padding = self._batch(prompt, padding_side)
        if queries is not None and not (queries.step == 1 and 0 <= queries.start < queries.stop <= ids.shape[1]):
            raise UsageError(f"queries must be a contiguous range within 0..{ids.shape[1]} (its end), got {queries}")
        options = {"queries": queries, "window": window, "top": top, "pooled": pooled}
        with self._recording(stats, layers, sets=sets, length=ids.shape[1], **options) as recording:
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
        """Return the logits [batch, tokens, vocab] of one forward pass, with gradients where the caller enables them.

        padding: [batch, tokens], True for tokens, if `prompt` is a padded batch of ids. logits_to_keep: number of last
        positions whose logits are computed; 0 keeps all. Gradients reach the gates of interventions too.
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
        """Continue a prompt by transformers' `generate`, and return the text, the ids and the statistics if requested.

        stats, layers, sets, window, top: as in `run_with_stats`; stats None records nothing. max_new_tokens: length of
        the continuation at most. options: passed to `generate`; without any, decoding is greedy.
        """
        ids = self._one(prompt, "generate")
        self._fits(ids.shape[1] + max_new_tokens)
        options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None} | options
        recorded = nullcontext()
        if stats is not None:
            length = ids.shape[1] + max_new_tokens
            recorded = self._recording(stats, layers, sets=sets, length=length, window=window, top=top)
        with recorded as recording:
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
        """Return the key-value cache after `ids` [tokens] or [batch, tokens]; `cache` is continued if given."""
        rows = ids if ids.ndim == 2 else ids[None]
        self._fits(rows.shape[1] + (0 if cache is None else cache.get_seq_length()))
        return decoding.prefill(self.hf, rows, cache=cache)

    def greedy(
        self, cache: DynamicCache, last: Tensor, *, max_new_tokens: int, stop: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        """Return the greedy continuation of each row as ids, at most `max_new_tokens` of them.

        cache: holds the prompt without its last token. last: [batch, 1], that token. stop: a row ends when this is true
        of its ids so far.
        """
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
        """Return z of every head in one forward pass, [batch, heads, tokens, value_dim] by layer.

        z is a head's output before the output projection; `PatchHeads` and mean pruning take it from here. layers: the
        layers to keep; None is all. padding: [batch, tokens], True for tokens, if `prompt` is a padded batch of ids.
        """
        ids, padding = self._batch(prompt, padding_side, padding)
        record = RecordOutputs(self._layers(layers))
        with engaged(self.hf, interventions=(record,), implementation=self.implementation):
            self._forward(ids, padding, logits_to_keep=1)
        hashes = [prompt.hash] if isinstance(prompt, Tokens) else [ids_hash(row) for row in ids]
        return record.outputs(hashes)

    @torch.no_grad()
    def capture(
        self, prompt: Prompt, *, layers: Sequence[int] | None = None, folder: Path | str | None = None
    ) -> Capture:
        """Return q, k and lse of every layer of one sequence, from which exact tiles of any attention map are drawn.

        layers: the layers to keep; None is all. folder: each layer is written there as it passes, and memory-mapped.
        """
        ids = self._one(prompt, "capture")
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

    @contextmanager
    def _recording(
        self, stats: Iterable[str] | Request, layers: Sequence[int] | None, **options: Any
    ) -> Iterator[Recording]:
        """Record inside the context; `options` are those of `request_for`."""
        request, sets = request_for(stats, **options)
        recording = Recording(request, layers=self._layers(layers), sets=sets)
        with engaged(self.hf, observers=(recording,), implementation=self.implementation):
            yield recording

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
                f"the prompt needs {length} positions and {self.name} has {self.context}: shorten the prompt or the "
                "continuation"
            )

    def _batch(
        self, prompt: Prompt | Sequence[str], padding_side: str, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        ids, padding = batch(self.tokenizer, prompt, side=padding_side, padding=padding)
        self._fits(ids.shape[1])
        return ids, padding

    def _one(self, prompt: Prompt, what: str) -> Tensor:
        ids, _ = self._batch(prompt, "left")
        if ids.shape[0] != 1:
            raise UsageError(f"{what} takes one prompt, got a batch of {ids.shape[0]}: call it for each prompt")
        return ids

    def _forward(self, ids: Tensor, padding: Tensor | None, *, logits_to_keep: int) -> Tensor:
        options = forward_options(self.hf, padding, columns=ids.shape[1], logits_to_keep=logits_to_keep)
        logits = self.hf(input_ids=ids.to(self.device), use_cache=False, **options).logits
        return logits[:, -logits_to_keep:] if logits_to_keep else logits
