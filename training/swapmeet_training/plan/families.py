"""The weights that transformers makes for a config: names and shapes, by architecture, without torch.

A family says what a layer is made of; `tests/training/test_plan_shape.py` holds each against transformers itself.
To add one: a function from `Config` to a layer's weights, and a line in `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from swapmeet_registry.errors import BaseInvalid

Shapes = dict[str, tuple[int, ...]]


class Config:
    """A config.json, asked for by the names that its architecture gives; `defaults` are the family's."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._values = {**defaults, **{key: value for key, value in values.items() if value is not None}}

    def number(self, name: str, default: int | None = None) -> int:
        """A positive whole number.

        Raises:
            BaseInvalid: it is missing or something else.
        """
        value = self._values.get(name, default)
        if type(value) is not int or value < 1:
            raise BaseInvalid(f"config.json has {name} {value!r} where a positive number should be. Fetch it again.")
        return value

    def switch(self, name: str, default: bool = False) -> bool:
        """A yes or no."""
        return bool(self._values.get(name, default))

    def text(self, name: str) -> str:
        """A word, empty where there is none."""
        value = self._values.get(name)
        return value if isinstance(value, str) else ""

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.number("hidden_size")

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.number("num_hidden_layers")

    @property
    def inner(self) -> int:
        """Width between an MLP's projections."""
        return self.number("intermediate_size")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.number("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.number("num_key_value_heads", self.heads)

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.number("head_dim", max(1, self.hidden // self.heads))

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True)
class Family:
    """An architecture: a layer's weights, the defaults of its config, and the names around the layers."""

    layer: Callable[[Config], Shapes]
    defaults: Mapping[str, Any]
    prefix: str = "model.layers"
    embedding: str = "model.embed_tokens"
    norm: str = "model.norm"
    norm_bias: bool = False
    head: str = "lm_head"
    head_bias: bool = False

    def weights(self, config: Config) -> Shapes:
        """All of a model's weights, a tied output head left out."""
        rows, width = config.number("vocab_size"), config.hidden
        shapes: Shapes = {f"{self.embedding}.weight": (rows, width)}
        layer = self.layer(config)
        for number in range(config.layers):
            shapes |= {f"{self.prefix}.{number}.{name}": shape for name, shape in layer.items()}
        shapes |= _norm(self.norm, width, bias=self.norm_bias)
        if not config.switch("tie_word_embeddings"):
            shapes[f"{self.head}.weight"] = (rows, width)
        if self.head_bias:
            shapes[f"{self.head}.bias"] = (rows,)
        return shapes


def _linear(name: str, out: int, into: int, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int, bias: bool = False) -> Shapes:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias") if bias or part == "weight"}


def _attention(c: Config, bias: bool = False, out_bias: bool = False, out: str = "o_proj") -> Shapes:
    shapes = _linear("self_attn.q_proj", c.queries, c.hidden, bias)
    shapes |= _linear("self_attn.k_proj", c.keys, c.hidden, bias) | _linear("self_attn.v_proj", c.keys, c.hidden, bias)
    return shapes | _linear(f"self_attn.{out}", c.hidden, c.queries, out_bias)


def _gated(c: Config, bias: bool = False) -> Shapes:
    shapes = _linear("mlp.gate_proj", c.inner, c.hidden, bias) | _linear("mlp.up_proj", c.inner, c.hidden, bias)
    return shapes | _linear("mlp.down_proj", c.hidden, c.inner, bias)


def _norms(c: Config, *names: str) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (c.hidden,) for name in names}
    return shapes


def _llama(c: Config) -> Shapes:
    bias = c.switch("attention_bias")
    attention = _attention(c, bias, bias)
    return attention | _gated(c, c.switch("mlp_bias")) | _norms(c, "input_layernorm", "post_attention_layernorm")


def _qwen2(c: Config) -> Shapes:
    return _attention(c, bias=True) | _gated(c) | _norms(c, "input_layernorm", "post_attention_layernorm")


def _head_norms(c: Config) -> Shapes:
    return _norm("self_attn.q_norm", c.head_width) | _norm("self_attn.k_norm", c.head_width)


def _qwen3(c: Config) -> Shapes:
    return _llama(c) | _head_norms(c)


def _gemma2(c: Config) -> Shapes:
    return _llama(c) | _norms(c, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _gemma3(c: Config) -> Shapes:
    return _gemma2(c) | _head_norms(c)


def _olmo2(c: Config) -> Shapes:
    bias = c.switch("attention_bias")
    norms = _norms(c, "post_attention_layernorm", "post_feedforward_layernorm")
    norms |= _norm("self_attn.q_norm", c.queries) | _norm("self_attn.k_norm", c.keys)
    return _attention(c, bias, bias) | _gated(c) | norms


def _phi(c: Config) -> Shapes:
    shapes = _attention(c, bias=True, out_bias=True, out="dense")
    shapes |= _linear("mlp.fc1", c.inner, c.hidden, bias=True) | _linear("mlp.fc2", c.hidden, c.inner, bias=True)
    return shapes | _norm("input_layernorm", c.hidden, bias=True)


def _phi3(c: Config) -> Shapes:
    shapes = _linear("self_attn.qkv_proj", c.queries + 2 * c.keys, c.hidden)
    shapes |= _linear("self_attn.o_proj", c.hidden, c.queries) | _linear("mlp.gate_up_proj", 2 * c.inner, c.hidden)
    shapes |= _linear("mlp.down_proj", c.hidden, c.inner)
    return shapes | _norms(c, "input_layernorm", "post_attention_layernorm")


def _gpt_neox(c: Config) -> Shapes:
    bias = c.switch("attention_bias", default=True)
    shapes = _linear("attention.query_key_value", 3 * c.hidden, c.hidden, bias)
    shapes |= _linear("attention.dense", c.hidden, c.hidden, bias)
    shapes |= _linear("mlp.dense_h_to_4h", c.inner, c.hidden, bias=True)
    shapes |= _linear("mlp.dense_4h_to_h", c.hidden, c.inner, bias=True)
    return (
        shapes | _norm("input_layernorm", c.hidden, bias=True) | _norm("post_attention_layernorm", c.hidden, bias=True)
    )


def _starcoder2(c: Config) -> Shapes:
    bias = c.switch("use_bias", default=True)
    shapes = _attention(c, bias, bias) | _linear("mlp.c_fc", c.inner, c.hidden, bias)
    shapes |= _linear("mlp.c_proj", c.hidden, c.inner, bias) | _norm("input_layernorm", c.hidden, bias=True)
    return shapes | _norm("post_attention_layernorm", c.hidden, bias=True)


NONE: Mapping[str, Any] = {}
TIED = {"tie_word_embeddings": True}
FAMILIES: Mapping[str, Family] = {
    "gemma": Family(_llama, TIED | {"head_dim": 256, "num_key_value_heads": 16}),
    "gemma2": Family(_gemma2, TIED | {"head_dim": 256, "num_key_value_heads": 4}),
    "gemma3_text": Family(_gemma3, TIED | {"head_dim": 256, "num_key_value_heads": 4}),
    "gpt_neox": Family(
        _gpt_neox,
        NONE,
        prefix="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm",
        norm_bias=True,
    ),
    "granite": Family(_llama, NONE),
    "llama": Family(_llama, NONE),
    "mistral": Family(_llama, {"num_key_value_heads": 8}),
    "olmo2": Family(_olmo2, NONE),
    "phi": Family(_phi, NONE, norm="model.final_layernorm", norm_bias=True, head_bias=True),
    "phi3": Family(_phi3, NONE),
    "qwen2": Family(_qwen2, {"num_key_value_heads": 32}),
    "qwen3": Family(_qwen3, {"num_key_value_heads": 32, "head_dim": 128}),
    "smollm3": Family(_llama, TIED | {"num_key_value_heads": 4}),
    "starcoder2": Family(_starcoder2, TIED | {"num_key_value_heads": 2}, norm_bias=True),
}
"""By `model_type`; the defaults are those of transformers, which leaves them out of a config.json."""
