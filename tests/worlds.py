"""Tiny worlds that tests share: language models of many architectures, a tokenizer, and one with a known optimum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from manners.models.branches import Branch, ScalarBranch
from manners.models.compute import Compute
from manners.models.decoder import Decoder
from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import States, Trunk, grow_trunk
from manners.models.vocabulary import Vocabulary
from manners.reward.ensemble import RewardModel
from manners.text import Batch, Packed, Rendered, Renderer, collate

VOCABULARY = 320
SPECIAL = ("<pad>", "<s>", "</s>", "<|start|>", "<|end|>")
PAD, BOS, EOS, START, END = range(len(SPECIAL))
END_IDS = frozenset((EOS, END))

TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
"""A chat template with one BOS and a token of its own that ends a turn."""
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)
"""The same, refusing system turns."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
    "mistral": {"sliding_window": 16},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},
    "falcon": {"head_dim": None},
    "gptj": {"rotary_dim": 4},
    "bloom": {},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.5},
    "olmo2": {},
    "mixtral": {},
    "smollm3": {},
    "stablelm": {},
}
"""Decoder-only model types, each with what this size needs; windows are shorter than the texts of the tests."""
TELLS_NOTHING = {"gemma2", "falcon", "gptj", "bloom", "stablelm"}
"""Those of them that pass nothing on to their attention."""


def tiny_model(model_type: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a random model: width 32, 4 layers; norms and biases are random too, so logits are far from uniform."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    settings = {**shape, **ARCHITECTURES.get(model_type, {}), **overrides}
    config = AutoConfig.for_model(model_type, **{name: value for name, value in settings.items() if value is not None})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = sorted(END_IDS)
    model.eval()
    return model


def with_compute(trunk: Trunk, **changes: Any) -> Trunk:
    """Return a trunk that computes in another way."""
    return replace(trunk, compute=replace(trunk.compute, **changes))


def new_decoder(model: PreTrainedModel, cut: int = 0, **changes: Any) -> Decoder:
    """Build a decoder for a model of which nothing is known but what `changes` says; it pads with 0."""
    return Decoder(model, replace(Compute.of(model), **changes), 0, cut)


@cache
def _byte_pairs(special: tuple[str, ...]) -> str:
    """Train byte-pair encoding on a few sentences: every text can be written, and comes back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [
        "system user assistant: thank you for the answer, that was kind of you.",
        "how do I bake bread without yeast, and how long does it take in the oven?",
        "the weather is fine today and the train to the sea leaves at noon.",
    ]
    tokenizer.train_from_iterator(sentences * 2, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(
    chat_template: str | None = TEMPLATE, pad_token: str | None = "<pad>", bos_token: str | None = "<s>"
) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer of 320 entries; with `chat_template` None it has none."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_pairs(SPECIAL)),
        bos_token=bos_token,
        eos_token="</s>",
        pad_token=pad_token,
        additional_special_tokens=["<|start|>", "<|end|>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer as GPT-2's: one special token, which begins and ends, no padding, no chat template."""
    model = Tokenizer.from_str(_byte_pairs(("</s>",)))
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="</s>", eos_token="</s>")


def tiny_renderer(chat_template: str | None = TEMPLATE, context: int = 256) -> Renderer:
    """Build a renderer around the tiny tokenizer."""
    return Renderer(tiny_tokenizer(chat_template), END_IDS, context)


def tiny_pretrained(
    model_type: str = "llama",
    trainable_layers: int | Literal["all"] = 2,
    chat_template: str | None = TEMPLATE,
    context: int = 256,
    lora_rank: int | None = None,
    **overrides: Any,
) -> Pretrained:
    """Build a model, cut and with its renderer, as `manners.models.pretrained.load` returns it."""
    return with_words(tiny_model(model_type, **overrides), trainable_layers, chat_template, context, lora_rank)


def with_words(
    model: PreTrainedModel,
    trainable_layers: int | Literal["all"] = 2,
    chat_template: str | None = TEMPLATE,
    context: int = 256,
    lora_rank: int | None = None,
) -> Pretrained:
    """Cut a model and give it the tiny tokenizer."""
    trunk = proved(grow_trunk(model, trainable_layers, lora_rank), context)
    renderer = tiny_renderer(chat_template, context)
    trunk = replace(trunk, vocabulary=Vocabulary.of(renderer, model))
    return Pretrained(f"tiny-{model.config.model_type}", trunk, renderer, note="")


def save_tiny(folder: Path, model_type: str = "llama", chat_template: str | None = TEMPLATE, **overrides: Any) -> Path:
    """Write a folder that `model.name` may be set to, and return it."""
    tiny_model(model_type, **overrides).save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder


KNOWN_WORDS = ("<pad>", "</s>", "a", "b", "c", "d")
KNOWN_PROMPTS = ((2, 1), (3, 1), (4, 1), (5, 1))
KNOWN_RESPONSES = ((1,), *((first, second) for first in (0, 2, 3, 4, 5) for second in range(6)))
"""All that can be said in two tokens: the end at once, or any other token and then any token."""


class Lookup(ScalarBranch):
    """A member that looks a response up: by the prompt's first token, and two tokens (6 where there is none)."""

    def __init__(self, pretrained: Pretrained, table: Float[Tensor, "6 6 7"]) -> None:
        super().__init__(pretrained.trunk, None)
        self.table = table

    def scores(self, states: States, batch: Batch | Packed) -> Float[Tensor, " B"]:
        """Look every response up."""
        assert isinstance(batch, Batch)
        said = torch.full((len(batch.ids), 2), len(KNOWN_WORDS))
        said[:, : batch.keep.shape[1]] = torch.where(batch.keep, batch.response_ids, len(KNOWN_WORDS))
        return self.table[batch.ids[:, 0], said[:, 0], said[:, 1]]


@dataclass(frozen=True)
class KnownWorld:
    """Six words, four prompts and 31 responses to each, with a reward for every one of them.

    The best policy at a KL coefficient c is known in closed form: pi*(y|x) = pi_ref(y|x) exp(r(x, y) / c) / Z(x), and
    is worth c log Z. Rewards have mean 0 under the reference, so what it is worth is what there is to gain.
    """

    pretrained: Pretrained
    table: Float[Tensor, "6 6 7"]

    @property
    def reward(self) -> RewardModel:
        """The reward as PPO takes it."""
        return RewardModel((Lookup(self.pretrained, self.table),), (0.0,), (1.0,))

    @property
    def rewards(self) -> Float[Tensor, "P Y"]:
        """The reward of every response to every prompt."""
        said = [(y[0], y[1] if len(y) > 1 else len(KNOWN_WORDS)) for y in KNOWN_RESPONSES]
        return torch.stack([self.table[x[0]][tuple(zip(*said, strict=True))] for x in KNOWN_PROMPTS]).double()

    @torch.no_grad()
    def logprobs(self, policy: Branch) -> Float[Tensor, "P Y"]:
        """Log-probability of every response to every prompt, by forward passes over all of them."""
        batch = collate([Rendered(x, y) for x in KNOWN_PROMPTS for y in KNOWN_RESPONSES], 0)
        hidden = policy.hidden(self.pretrained.trunk.states(batch), batch)
        return policy.logprobs(hidden, batch, 1.0).double().sum(dim=1).view(len(KNOWN_PROMPTS), -1)

    def optimum(self, coefficient: float) -> Float[Tensor, "P Y"]:
        """Log-probabilities of the best policy."""
        reference = self.logprobs(Branch(self.pretrained.trunk, trainable=False))
        return (reference + self.rewards / coefficient).log_softmax(dim=1)

    def objective(self, logprobs: Float[Tensor, "P Y"], coefficient: float) -> float:
        """E[r] - coefficient * KL(policy || reference), exactly, averaged over the prompts."""
        reference = self.logprobs(Branch(self.pretrained.trunk, trainable=False))
        worth = self.rewards - coefficient * (logprobs - reference)
        return float((logprobs.exp() * worth).sum(dim=1).mean())


def known_world(seed: int = 0, dtype: torch.dtype = torch.float32) -> KnownWorld:
    """Build the world: a reference that is not far from uniform, and a reward that judges token by token.

    Each of two tokens earns one of a few levels, drawn anew for every prompt and first token; to end at once earns
    little. The levels are far enough apart that gradient ascent on the exact objective finds the optimum too: with
    near ties under a small coefficient it stays for very long where it first was, which is not what is tested here.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: i for i, word in enumerate(KNOWN_WORDS)}, unk_token="a")),
        eos_token="</s>",
        pad_token="<pad>",
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    sizes = {"vocab_size": len(KNOWN_WORDS), "hidden_size": 64, "head_dim": 16, "num_hidden_layers": 1}
    model = tiny_model("llama", bos_token_id=None, eos_token_id=1, **sizes)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.1)
    trunk = grow_trunk(torch.nn.Module.to(model, dtype=dtype), "all")
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(5, generator=generator) for _ in range(6)])
    first = torch.full((6, 6), -0.8)
    first[:, [0, 2, 3, 4, 5]] = torch.tensor((2.0, 0.8, 0.4, 0.0, -0.4))[orders]
    second = torch.tensor((2.0, 0.8, 0.4, 0.0, -0.4, -0.8))
    seconds = torch.stack([second[torch.randperm(6, generator=generator)] for _ in range(36)]).view(6, 6, 6)
    table = first.unsqueeze(2) + torch.cat([seconds, torch.zeros((6, 6, 1))], dim=2)
    world = KnownWorld(Pretrained("known", trunk, Renderer(tokenizer, frozenset((1,)), 64), note=""), table)
    means = (world.logprobs(Branch(trunk, trainable=False)).exp() * world.rewards).sum(dim=1)
    for prompt, mean in zip(KNOWN_PROMPTS, means.tolist(), strict=True):
        table[prompt[0]] -= mean
    return world
