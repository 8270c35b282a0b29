"""`ContextLM` with the interface of Hugging Face transformers.

What `newllm export` writes into a folder under this name is this file with everything that it needs
of newllm put in (see `bundle.py`): it imports torch and transformers, and nothing else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, LinearAttentionLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from newllm.model.context.lm import ContextLM
from newllm.model.residual import State, put_back, real_tokens_first
from newllm.model.trunk import TrunkOutput

if TYPE_CHECKING:
    from newllm.config import ModelSettings


class NewLLMConfig(PreTrainedConfig):
    """The shape of a model, and the record of the run that trained it."""

    model_type = "new_llm"
    attribute_map = {"num_hidden_layers": "num_layers", "hidden_size": "embed_dim"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 4096,
        num_layers: int = 1,
        context_dim: int = 256,
        embed_dim: int = 256,
        hidden_dim: int = 512,
        pair_rows: int = 0,
        recall_slots: int = 0,
        counts: int = 0,
        dropout: float = 0.0,
        use_cache: bool = True,
        record: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Sizes as in New-LLM; `record` is what `newllm import` needs besides the weights."""
        self.vocab_size, self.num_layers = vocab_size, num_layers
        self.context_dim, self.embed_dim, self.hidden_dim = context_dim, embed_dim, hidden_dim
        self.pair_rows, self.recall_slots, self.counts = pair_rows, recall_slots, counts
        self.dropout, self.use_cache, self.record = dropout, use_cache, record
        super().__init__(**{**kwargs, "tie_word_embeddings": True})


class ContextCache(Cache):
    """The state of fixed size, in transformers' layers for recurrent models.

    Each layer holds its context ("recurrent state", [B, C]) and its last three writes ("conv
    state", [B, C, 3], oldest first); beside the layers stand the tables of recall and the last
    tokens. It is updated in place; `copy.deepcopy` forks it.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[LinearAttentionLayer() for _ in range(num_layers)])
        self._positions = 0
        self._beside: State = {}
        """What no layer has, the sequences in dimension 1."""

    @property
    def is_compileable(self) -> bool:
        """No, so that masks stay as the caller gave them."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions read so far, padding included; nothing of them is kept but the state."""
        return self._positions

    def reset(self) -> None:
        super().reset()
        self._positions, self._beside = 0, {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(cast("torch.LongTensor", beam_idx))
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for name, part in self._beside.items():
            self._beside[name] = part.repeat_interleave(repeats, dim=1)

    def _select(self, sequences: Tensor) -> None:
        for name, part in self._beside.items():
            self._beside[name] = part[:, sequences.to(part.device)]

    def set_answering(self, answering: bool) -> None:
        """Whether what is read from here on is the model's own answer: recall copies nothing of it.

        `generate` says so by itself. A model that looks into its own words repeats them.
        """
        if not answering:
            self._beside.pop("looked_up", None)
        elif "recall" in self._beside:
            self._beside.setdefault("looked_up", self._beside["recall"])

    def read(self) -> State | None:
        """The state as `ContextLM` takes it: context [L, B, C], tail [L, B, 3, C]."""
        if not self.has_previous_state():
            return None
        layers = cast("list[LinearAttentionLayer]", self.layers)
        contexts = [cast(Tensor, layer.recurrent_states[0]) for layer in layers]
        writes = [cast(Tensor, layer.conv_states[0]) for layer in layers]
        newest_first = torch.stack(writes).flip(-1).transpose(2, 3)
        return {"context": torch.stack(contexts), "tail": newest_first, **self._beside}

    def write(self, state: State, positions: int) -> None:
        """Take in a state, and how many positions were read since the last one."""
        oldest_first = state["tail"].detach().transpose(2, 3).flip(-1)
        for layer, context in enumerate(state["context"].detach()):
            self.update_conv_state(oldest_first[layer], layer)
            self.update_recurrent_state(context, layer)
        self._beside = {name: state[name] for name in state.keys() - {"context", "tail"}}
        self._positions += positions


@dataclass
class NewLLMOutput(BaseModelOutputWithPast):
    """What the stack says of each token."""

    matches: Tensor | None = None
    """What recall found, int32 [B, T], if the model has recall."""
    contexts: Tensor | None = None
    """What the table of counts knows, int32 [B, T, K], if the model has counts."""


class NewLLMBackbone(ContextLM):
    """The stack without its head, called as transformers calls one."""

    _streams: list[Tensor] | None = None
    """The stream before each block, while it is asked for."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: ContextCache | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> NewLLMOutput:
        """Read tokens; arguments as in :meth:`NewLLMForCausalLM.forward`."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("New-LLM reads input_ids; inputs_embeds are not supported")
        time = input_ids.shape[1]
        valid = None
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[1] < time:
                raise ValueError(
                    f"attention_mask {list(attention_mask.shape)}: expected one number for each "
                    f"token read, [batch, {time} or more]"
                )
            valid = attention_mask[:, attention_mask.shape[1] - time :].bool()
        cache = past_key_values
        if cache is not None and not isinstance(cache, ContextCache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}, which has no place for a context; "
                "pass the cache that the model returned, or none"
            )
        reset = None if position_ids is None else (position_ids == 0).expand_as(input_ids)
        state = None if cache is None else cache.read()
        self._streams = [] if output_hidden_states else None
        read, after = super().forward(input_ids, state, reset, valid)
        said = read if isinstance(read, TrunkOutput) else TrunkOutput(read)
        streams, self._streams = self._streams, None
        if streams is not None:
            if valid is not None and not bool(valid.all()):
                order = real_tokens_first(valid)[0]
                streams = [cast(Tensor, put_back(stream, order, valid)) for stream in streams]
            streams.append(said.hidden)
        if use_cache and cache is None:
            cache = ContextCache(self.settings.num_layers)
        if cache is not None:
            cache.write(after, time)
        return NewLLMOutput(
            last_hidden_state=cast(torch.FloatTensor, said.hidden),
            past_key_values=cache,
            hidden_states=None if streams is None else cast(Any, tuple(streams)),
            matches=said.matches,
            contexts=said.contexts,
        )

    def _saw(self, stream: Tensor) -> None:
        if self._streams is not None:
            self._streams.append(stream)


def _checkpointed(method: Any, checkpoint: Any, *arguments: Any) -> Any:
    """Call a method of a module; in training what it computes is computed again backwards."""
    if method.__self__.training and torch.is_grad_enabled():
        return checkpoint(method, *arguments)
    return method(*arguments)


class NewLLMPreTrainedModel(PreTrainedModel):
    """What the stack with its head and without have in common."""

    model: NewLLMBackbone
    config_class = NewLLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ContextBlock"]  # noqa: RUF012
    # Loaded in 16 bits, only the matrices are; norms and recurrence stay exact.
    _keep_in_fp32_modules_strict = {  # noqa: RUF012
        "norm", "embedding_norm", "mixer_norm", "forget_bias", "read_bias", "conv_weight",
        "read_scale", "order", "times", "gate", "bias",
    }  # fmt: skip
    _is_stateful = True  # the state cannot be taken back: assisted decoding is refused

    def __init__(self, config: NewLLMConfig) -> None:
        super().__init__(config)
        self.model = NewLLMBackbone(cast("ModelSettings", config), config.vocab_size)
        if self.model.counts is not None:
            self.model.counts.reserve(config.counts)
        _tell_peft()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the blocks initialise themselves when they are made."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the backbone makes the cache

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = cast(nn.Embedding, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As always (`half`, `bfloat16`, `to`); what has to be exact stays in 32 bits."""
        kept = set(self._keep_in_fp32_modules_strict or ())
        exact = {
            name: parameter.detach()
            for name, parameter in self.named_parameters()
            if kept & set(name.split(".")) and parameter.dtype == torch.float32
        }
        result = super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if name in exact and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = exact[name].to(parameter.device)
        return result

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Any = None,
        every_n_layers: int | None = None,
    ) -> None:
        """Keep of each block (or every n-th) what goes in, and compute the rest again backwards."""
        for layer, block in enumerate(self.model.blocks):
            for owner, name in ((block, "mix"), (cast(Any, block).feed_forward, "forward")):
                vars(owner).pop(name, None)
                if enable and layer % (every_n_layers or 1) == 0:
                    method = getattr(owner, name)
                    wrapped = partial(_checkpointed, method, gradient_checkpointing_func)
                    object.__setattr__(owner, name, wrapped)
        self._checkpointing = enable

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return getattr(self, "_checkpointing", False)


def _tell_peft() -> None:
    """Say which matrices LoRA adapts where nothing is said, to PEFT if it is in use."""
    constants: Any = sys.modules.get("peft.utils.constants")
    users = [constants, sys.modules.get("peft.tuners.lora.model")]
    for module in filter(None, users):
        known = getattr(module, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
        known.setdefault("new_llm", ["in_proj", "out_proj", "up_proj", "down_proj"])


class NewLLMModel(NewLLMPreTrainedModel):
    """The stack without its head: what the last block says of each token."""

    def __init__(self, config: NewLLMConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: ContextCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> NewLLMOutput | tuple[Any, ...]:
        """Read tokens; arguments as in :meth:`NewLLMForCausalLM.forward`."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        read = self.model(input_ids, attention_mask, past_key_values, use_cache=use_cache, **kwargs)
        return read if return_dict in (None, True) else read.to_tuple()


class NewLLMForCausalLM(NewLLMPreTrainedModel, GenerationMixin):
    """A stack of context blocks for `generate`, pipelines and trainers."""

    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: NewLLMConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        self.post_init()

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        *args: Any,
        past_key_values: ContextCache | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As always; and the cache learns where the model's own answer begins."""
        if isinstance(past_key_values, ContextCache):
            past_key_values.set_answering(not is_first_iteration)
        return cast(Any, super()).prepare_inputs_for_generation(
            *args,
            past_key_values=past_key_values,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: ContextCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Read tokens.

        Args:
            input_ids: [B, T].
            attention_mask: 0 at padding (on either side), [B, T] or, with a cache, [B, longer],
                of which the last T columns count.
            past_key_values: cache that an earlier call returned; it goes on in place.
            labels: the `input_ids` themselves, -100 where they are not to be learnt, [B, T].
            use_cache: return a cache; by default in evaluation mode without labels.
            logits_to_keep: only those of the last so many positions; 0 for all.
            output_hidden_states: also return the stream before each block, and what the last says
                (zeros at padding), [B, T, D] each.
            return_dict: False for a tuple.
            kwargs: `position_ids` [B, T]: a document starts where they are 0 (rows that several
                documents share); the rest goes to the loss.

        Raises:
            ValueError: no `input_ids`, another kind of mask or cache.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        of_backbone = {name: kwargs.pop(name, None) for name in ("position_ids", "inputs_embeds")}
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        of_backbone["output_hidden_states"] = output_hidden_states
        read = self.model(
            input_ids, attention_mask, past_key_values, use_cache=use_cache, **of_backbone
        )
        said = TrunkOutput(read.last_hidden_state, read.matches, read.contexts)
        last = said[:, -logits_to_keep:]
        logits = self.model.with_memories(self.lm_head(last.hidden), last)
        loss = None
        if labels is not None:
            size = self.config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=read.past_key_values,
            hidden_states=read.hidden_states,
        )
        return output if return_dict in (None, True) else output.to_tuple()
