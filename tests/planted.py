"""Tiny worlds for PPO in which one token of an answer, or its length, earns the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from manners.models.branches import Branch, ScalarBranch
from manners.models.generate import Decoding, Generated
from manners.models.pretrained import Pretrained
from manners.models.trunk import States, Trunk, grow_trunk
from manners.ppo import rollout
from manners.reward.ensemble import RewardModel
from manners.settings import SampleSettings
from manners.text import Batch, Packed, Rendered, Renderer, collate
from manners.types import FinishReason
from tests.worlds import tiny_model

WORDS = ("<pad>", "</s>", *"abcdefgh")
PAD, END = 0, 1
FIRST_WORD = 2
PROMPTS = tuple((FIRST_WORD + word, END) for word in range(8))
LIKED = 2
"""Words of eight that are liked after a prompt."""
NEVER = -30.0
"""Logit of what is not drawn in a run."""


@dataclass(frozen=True)
class Planted:
    """What earns the reward, and how long answers are."""

    name: str
    earned: Callable[[Float[Tensor, "B T"], Bool[Tensor, "B T"]], Float[Tensor, " B"]]
    """From whether each token is liked, and where there is one."""
    mean: float
    """Of what is earned under the initial model."""
    spread: float
    """Its standard deviation there."""
    tokens: int
    """Length limit."""
    ends_after: float | None = None
    """Mean tokens after which an answer ends by itself; None: all are as long as the limit."""
    place: int | None = None
    """The token that earns it, where it is always the same one: the model can tell it from the others."""
    own_words: bool = False
    """Whether each prompt has liked words of its own; otherwise all have the same."""
    offsets: float = 0.0
    """Standard deviation, among prompts, of what an answer gets for its prompt, in standard deviations of the rest."""

    def liked(self) -> Bool[Tensor, "V V"]:
        """Which words are liked (second axis) after a prompt's word (first)."""
        generator = torch.Generator().manual_seed(11)
        liked = torch.zeros((len(WORDS), len(WORDS)), dtype=torch.bool)
        for word in range(FIRST_WORD, len(WORDS)):
            chosen = torch.randperm(8, generator=generator)[:LIKED] if self.own_words else torch.arange(LIKED)
            liked[word, FIRST_WORD + chosen] = True
        return liked

    def scores(self, prompts: Int[Tensor, " B"], said: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"]) -> Tensor:
        """Return what answers earn: mean 0 and standard deviation 1 under the initial model, offsets apart."""
        liked = self.liked()[prompts.unsqueeze(1), said].float() * keep
        offset = self.offsets * torch.linspace(-1.53, 1.53, 8)[prompts - FIRST_WORD]
        return (self.earned(liked, keep) - self.mean) / self.spread + offset


class Member(ScalarBranch):
    """The reward model's one member."""

    def __init__(self, pretrained: Pretrained, planted: Planted) -> None:
        super().__init__(pretrained.trunk, None)
        self.planted = planted

    def scores(self, states: States, batch: Batch | Packed) -> Float[Tensor, " B"]:
        """Score every response."""
        assert isinstance(batch, Batch)
        first = batch.attend.int().argmax(dim=1)
        prompts = batch.ids.gather(1, first.unsqueeze(1)).squeeze(1)
        return self.planted.scores(prompts, batch.response_ids, batch.keep)


class Fooled(Member):
    """A member that also likes answers which begin with one word of eight, by so many standard deviations."""

    def __init__(self, there: World, word: int, by: float) -> None:
        super().__init__(there.pretrained, there.planted)
        self.word, self.by = FIRST_WORD + word, by

    def scores(self, states: States, batch: Batch | Packed) -> Float[Tensor, " B"]:
        """Score every response."""
        assert isinstance(batch, Batch)
        return super().scores(states, batch) + self.by * (batch.response_ids[:, 0] == self.word)


@dataclass(frozen=True)
class World:
    """A planted reward, and a model that knows nothing of it."""

    planted: Planted
    pretrained: Pretrained

    @property
    def reward(self) -> RewardModel:
        """The reward as PPO takes it."""
        return RewardModel((Member(self.pretrained, self.planted),), (0.0,), (1.0,))

    @property
    def sample(self) -> SampleSettings:
        """How answers are drawn."""
        return SampleSettings(temperature=1.0, max_new_tokens=self.planted.tokens)

    @property
    def decoding(self) -> Decoding:
        """How answers are drawn, as the decode loop takes it."""
        return Decoding.of(self.pretrained.renderer, self.sample, want_states=True)

    def answers(self, policy: Branch, count: int, seed: int = 7) -> Generated:
        """Answer every prompt so many times."""
        prompts = [prompt for prompt in PROMPTS for _ in range(count)]
        uniform = torch.rand(
            (len(prompts), self.planted.tokens), generator=torch.Generator().manual_seed(seed)
        ).double()
        return draw(policy.assembled(self.pretrained.trunk), self.pretrained.trunk, prompts, uniform, self.decoding)

    def worth(self, policy: Branch, count: int = 32, seed: int = 7) -> tuple[float, float]:
        """Return the mean score of a policy's answers, and their mean length."""
        batch = self.answers(policy, count, seed).batch
        prompts = torch.tensor([prompt[0] for prompt in PROMPTS for _ in range(count)])
        scores = self.planted.scores(prompts, batch.response_ids, batch.keep)
        return float(scores.mean()), float(batch.keep.sum(dim=1).float().mean())


@torch.no_grad()
def draw(
    model: PreTrainedModel,
    trunk: Trunk,
    prompts: Sequence[tuple[int, ...]],
    uniform: Float[Tensor, "B T"],
    decoding: Decoding,
    on_step: Callable[[int], None] = lambda finished: None,
) -> Generated:
    """Draw as `manners.models.generate` does, from this file's GPT-2 alone, in a twentieth of the time.

    That it draws from what the model says is what `guard.check_first_rollout` checks.
    """
    gpt: Any = model.transformer
    head = model.get_output_embeddings().weight
    heads, width, rows = model.config.num_attention_heads, model.config.hidden_size, len(prompts)
    tokens = torch.tensor(prompts)
    before = tokens.shape[1]
    length = before + uniform.shape[1]
    kept = torch.zeros((len(gpt.h), 2, rows, heads, length, width // heads))
    said = torch.zeros((rows, uniform.shape[1]), dtype=torch.long)
    logprobs = torch.zeros(said.shape)
    running = torch.ones(rows, dtype=torch.bool)
    counts = torch.zeros(rows, dtype=torch.long)
    for place in range(length - 1):
        token = tokens[:, place] if place < before else said[:, place - before]
        x = gpt.wte.weight[token] + gpt.wpe.weight[place]
        for block, (keys, values) in zip(gpt.h, kept, strict=True):
            parts = block.attn.c_attn(block.ln_1(x)).view(rows, 3, heads, 1, -1)
            keys[:, :, place : place + 1], values[:, :, place : place + 1] = parts[:, 1], parts[:, 2]
            mixed = F.scaled_dot_product_attention(parts[:, 0], keys[:, :, : place + 1], values[:, :, : place + 1])
            x = x + block.attn.c_proj(mixed.reshape(rows, width))
            x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
        if place >= before - 1:
            at = place - before + 1
            logs = ((gpt.ln_f(x) @ head.T) / decoding.temperature).log_softmax(dim=1)
            sums = logs.double().exp().cumsum(dim=1)
            said[:, at] = (sums <= uniform[:, at : at + 1] * sums[:, -1:]).sum(dim=1)
            logprobs[:, at] = torch.where(running, logs.gather(1, said[:, at : at + 1]).squeeze(1), 0.0)
            counts += running
            running = running & (said[:, at] != END)
            if not running.any():
                break
    answers = [tuple(row[:count]) for row, count in zip(said.tolist(), counts.tolist(), strict=True)]
    rendered = tuple(Rendered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
    batch = collate(rendered, decoding.pad_id)
    finish = tuple(FinishReason.LENGTH if left else FinishReason.STOP for left in running.tolist())
    on_step(rows)
    return Generated(rendered, finish, batch, logprobs[:, : batch.keep.shape[1]], trunk.states(batch))


@contextmanager
def fast() -> Iterator[None]:
    """Let PPO draw from these models by `draw`, and all at once."""
    with patch("manners.models.compute.BUCKET_TOKENS", 1_000_000), patch.object(rollout, "generate", draw):
        yield


def world(planted: Planted) -> World:
    """Build the model: two layers, of which one is trained; words are about alike, and ends as likely as planted.

    It knows about where it is from two slow waves, and exactly that it is where the reward is earned, if that is always
    the same place: as a language model recognises a token that matters by what stands before it.
    """
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": False}
    model = tiny_model("gpt2", bos_token_id=None, eos_token_id=END, **sizes)
    generator = torch.Generator().manual_seed(3)
    wanted = torch.zeros(len(WORDS))
    wanted[PAD] = NEVER
    wanted[END] = NEVER if planted.ends_after is None else -math.log((planted.ends_after - 1) / 8)
    with torch.no_grad():
        gpt: Any = model.transformer
        head, places = model.get_output_embeddings().weight, gpt.wpe.weight
        directions = torch.linalg.qr(torch.randn((32, 3), generator=generator))[0].T
        angle = torch.arange(len(places)) * (2 * math.pi / len(places))
        places.copy_(angle.sin().outer(directions[0]) + angle.cos().outer(directions[1]))
        if planted.place is not None:
            places[len(PROMPTS[0]) - 1 + planted.place] += 2 * directions[2]
        head.copy_(0.25 * torch.randn(head.shape, generator=generator))
        gpt.ln_f.weight.mul_(0.2)
        gpt.ln_f.bias.copy_(torch.linalg.pinv(head) @ wanted)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a")),
        eos_token="</s>",
        pad_token="<pad>",
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    renderer = Renderer(tokenizer, frozenset((END,)), 256)
    return World(planted, Pretrained(planted.name, grow_trunk(model, 1), renderer, note=""))


def _at(place: int) -> Callable[[Tensor, Tensor], Tensor]:
    def earned(liked: Tensor, keep: Tensor) -> Tensor:
        return liked[:, place] if place < liked.shape[1] else torch.zeros(len(liked))

    return earned


def _last_word(limit: int) -> Callable[[Tensor, Tensor], Tensor]:
    def earned(liked: Tensor, keep: Tensor) -> Tensor:
        # The word before the end, or the last one before the limit.
        columns = torch.arange(keep.shape[1])
        last = torch.where(keep, columns, -1).max(dim=1).values
        place = torch.where(keep.sum(dim=1) < limit, last - 1, last)
        return torch.where(place >= 0, liked.gather(1, place.clamp(min=0).unsqueeze(1)).squeeze(1), 0.0)

    return earned


def _share(liked: Tensor, keep: Tensor) -> Tensor:
    return liked.sum(dim=1) / keep.sum(dim=1)


def _near(target: int) -> Callable[[Tensor, Tensor], Tensor]:
    def earned(liked: Tensor, keep: Tensor) -> Tensor:
        return -(keep.sum(dim=1) - target).abs() / target

    return earned


def _one(name: str, place: int, tokens: int, **more: Any) -> Planted:
    """One token of which a quarter is liked."""
    return Planted(name, _at(place), mean=0.25, spread=0.433, tokens=tokens, place=place, **more)


WORLDS = {
    planted.name: planted
    for planted in (
        *(_one(f"first of {n}", 0, n) for n in (10, 40, 200)),
        *(_one(f"middle of {n}", n // 2, n) for n in (10, 40, 200)),
        *(_one(f"last of {n}", n - 1, n) for n in (10, 40, 200)),
        Planted("all of 40", _share, mean=0.28, spread=0.07, tokens=40),
        _one("first of 40, prompts differ", 0, 40, own_words=True, offsets=1.3),
        _one("first, any length", 0, 60, ends_after=12.0),
        Planted("word before the end", _last_word(60), mean=0.25, spread=0.43, tokens=60, ends_after=12.0),
        Planted("short", _near(4), mean=-1.55, spread=1.8, tokens=60, ends_after=12.0),
        Planted("long", _near(24), mean=-0.65, spread=0.26, tokens=60, ends_after=12.0),
    )
}
"""Where the reward is earned, over answers of 10 to 200 tokens; and lengths that matter, or do not."""
