"""The loss of rows of tokens: through the model's own forward or, for a plain Llama, by a shorter way to the same.

A small model on a CPU spends more time on what stands between its matrix products than on them. So for a Llama of the
dial's shape q, k and v are one product, norm and SwiGLU are each one step with a backward of its own, attention is told
that it is causal and given no mask, and head and loss are one: logits of a few rows at a time, in the cache, whose
gradient is taken at once. `tests/pretrain/test_forward.py` holds it to the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

IGNORED = -100
"""A target that does not count."""
HEAD_NUMBERS = 2**19
"""Logits that are held at once."""
LINEAR_HEADS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
"""Models whose logits are a product with the head and nothing more."""


def loss(model: PreTrainedModel, rows: Int[Tensor, "B T1"], targets: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Return the sum over targets of -log p(target | what stands before it in its row), in nats."""
    inputs = rows[:, :-1]
    if has_short_head(model) and rows.device.type == "cpu":
        if is_plain(model):
            assert isinstance(model, LlamaForCausalLM)
            hidden = _hidden(model, inputs)
        else:
            hidden = model.base_model(inputs, use_cache=False).last_hidden_state
        return head_loss(hidden.flatten(0, 1), model.get_output_embeddings().weight, targets.flatten())
    logits = model(inputs, use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def has_short_head(model: PreTrainedModel) -> bool:
    """Whether a model's loss can be had a few rows of logits at a time: a head without bias, float32."""
    return type(model) in LINEAR_HEADS and model.dtype == torch.float32


def is_plain(model: PreTrainedModel) -> bool:
    """Whether a model is a Llama of the dial's kind: keys for each head, no bias, the usual rotation, float32."""
    config: Any = model.config
    return (
        type(model) is LlamaForCausalLM
        and config.num_key_value_heads == config.num_attention_heads
        and config.hidden_act == "silu"
        and not (config.attention_bias or config.mlp_bias)
        and model.model.rotary_emb.rope_type == "default"
        and model.dtype == torch.float32
    )


def _hidden(model: LlamaForCausalLM, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Return what comes to the head."""
    rows, length = ids.shape
    inner, config = model.model, model.config
    heads, size = config.num_attention_heads, model.model.layers[0].self_attn.head_dim
    eps = config.rms_norm_eps
    cos, sin = _rotation(model, length)
    x = functional.embedding(ids, inner.embed_tokens.weight)
    for layer in inner.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normed = norm(x, layer.input_layernorm.weight, eps)
        reading = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
        qkv = functional.linear(normed, reading).view(rows, length, 3, heads, size)
        q, k = rotated(qkv[:, :, :2], cos, sin).unbind(2)
        said = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), qkv[:, :, 2].transpose(1, 2), is_causal=True
        )
        x = x + functional.linear(said.transpose(1, 2).reshape(rows, length, heads * size), attention.o_proj.weight)
        normed = norm(x, layer.post_attention_layernorm.weight, eps)
        both = functional.linear(normed, torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)))
        x = x + functional.linear(gated(both), mlp.down_proj.weight)
    found: Tensor = norm(x, inner.norm.weight, eps)
    return found


def _rotation(model: LlamaForCausalLM, length: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each position's angles, (T, 1, 1, size / 2)."""
    angles = torch.arange(length).float()[:, None] * model.model.rotary_emb.inv_freq
    return angles.cos()[:, None, None], angles.sin()[:, None, None]


class Norm(Function):
    """x / sqrt(mean(x^2) + eps) * w over the last axis, keeping x and one number a row for its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the normed states."""
        scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d/dx = s (w g - n mean(w g n)), d/dw = sum g n, with n = s x."""
        x, weight, scale = ctx.saved_tensors
        [grad] = grads
        normed = x * scale
        through = grad * normed
        weight_grad = through.flatten(0, -2).sum(0)
        mean = (through @ weight).unsqueeze(-1).div_(x.shape[-1])
        return (grad * weight).sub_(normed.mul_(mean)).mul_(scale), weight_grad, None


class Rotated(Function):
    """(a, b) -> (a cos - b sin, b cos + a sin) on the halves of the last axis; the backward turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the turned queries and keys."""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Turn back."""
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    found = torch.empty_like(x, memory_format=torch.contiguous_format)
    half = x.shape[-1] // 2
    torch.mul(a, cos, out=found[..., :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=found[..., half:]).addcmul_(a, sin)
    return found


class Gated(Function):
    """silu(gate) * up, of both in one, keeping only these two for its backward."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """Return what the gates let through."""
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """With s = sigmoid(gate): d up = g gate s,  d gate = g up s (1 + gate (1 - s))."""
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        found = torch.empty_like(both)
        to_gate, to_up = found.chunk(2, dim=-1)
        torch.mul(functional.silu(gate), grads[0], out=to_up)
        to_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return (found,)


class HeadLoss(Function):
    """Sum of cross-entropies of hidden @ weight^T, whose gradient is taken with it, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, graded: bool) -> Tensor:
        """Return the sum in nats; where a gradient will be asked for it is ready."""
        wanted = graded and any(ctx.needs_input_grad[:2])  # which says nothing of `no_grad`
        to_hidden = torch.empty_like(hidden) if wanted else None
        to_weight = torch.zeros_like(weight) if wanted else None
        total = hidden.new_zeros((), dtype=torch.float64)
        at_once = max(1, HEAD_NUMBERS // weight.shape[0])
        for start in range(0, len(hidden), at_once):
            some, wants = hidden[start : start + at_once], targets[start : start + at_once]
            keep = wants != IGNORED
            index = wants.clamp(min=0).unsqueeze(1)
            logits = some @ weight.t()
            whole = logits.logsumexp(dim=1, keepdim=True)
            total += ((whole - logits.gather(1, index)).squeeze(1) * keep).sum(dtype=torch.float64)
            if to_hidden is not None and to_weight is not None:
                grad = logits.sub_(whole).exp_()
                grad.scatter_add_(1, index, grad.new_full(index.shape, -1.0))
                if not bool(keep.all()):
                    grad.mul_(keep.unsqueeze(1))
                torch.mm(grad, weight, out=to_hidden[start : start + at_once])
                to_weight.addmm_(grad.t(), some)
        if to_hidden is not None and to_weight is not None:
            ctx.save_for_backward(to_hidden, to_weight)
        return total.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what is ready."""
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * grads[0], to_weight * grads[0], None, None


def head_loss(hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " N"]) -> Tensor:
    """Return the sum of cross-entropies of hidden @ weight^T, without its gradient where none is recorded."""
    return _head_loss(hidden, weight, targets, torch.is_grad_enabled())


norm: Callable[..., Tensor] = Norm.apply
rotated: Callable[..., Tensor] = Rotated.apply
gated: Callable[..., Tensor] = Gated.apply
_head_loss: Callable[..., Tensor] = HeadLoss.apply
