"""A new model of the dial's shape, and how its parameters are to move."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from manners.pretrain.dial import Recipe, Shape
from manners.training import Group

EMBEDDING_SPREAD = 0.8
HEAD_SPREAD = 0.001
BETAS = (0.8, 0.95)
"""AdamW's, for embedding, head and norms."""


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Make a Llama of a shape, with weights by the seed: a layer adds nothing at first.

    The matrices that write into the residual stream are zero; those that read from it are uniform with standard
    deviation 1 / sqrt(width), the SwiGLU's 0.4 of that; the embedding is about as large as what layers will add. So
    every logit is near zero, and the first loss near ln(vocabulary).
    Source: nanochat's initialisation, in a plain Llama.
    """
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.row,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its table is no parameter, and was emptied too
    generator = torch.Generator().manual_seed(seed)
    bound = math.sqrt(3.0 / shape.width)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.normal_(0.0, EMBEDDING_SPREAD, generator=generator)
        model.lm_head.weight.normal_(0.0, HEAD_SPREAD, generator=generator)
        for layer in model.model.layers:
            layer.input_layernorm.weight.fill_(1.0)
            layer.post_attention_layernorm.weight.fill_(1.0)
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                linear.weight.uniform_(-bound, bound, generator=generator)
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight.uniform_(-0.4 * bound, 0.4 * bound, generator=generator)
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def weights_hash(model: PreTrainedModel) -> str:
    """Return a short name for a model's weights."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def groups(model: PreTrainedModel, recipe: Recipe) -> list[Group]:
    """Divide the parameters: matrices of the layers by Muon; embedding, head, and all that is no matrix by AdamW."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    apart: dict[int, float] = {id(head.weight): recipe.head_rate} if head is not None else {}
    apart[id(inputs.weight)] = recipe.embedding_rate
    matrices, found = list[nn.Parameter](), dict[float, list[nn.Parameter]]()
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    for parameter in model.parameters():
        if parameter.ndim == 2 and id(parameter) not in apart and id(parameter) not in tables:
            matrices.append(parameter)
        else:
            found.setdefault(apart.get(id(parameter), recipe.matrix_rate), []).append(parameter)
    by_muon = [Group(matrices, recipe.matrix_rate, muon=True, decay=recipe.decay)] if matrices else []
    return [*by_muon, *(Group(some, rate, betas=BETAS) for rate, some in found.items())]
