"""One dial: `depth` derives a model and how it is trained, each number by a rule that is stated here.

Shape: width 32 (depth + 1), to a multiple of 64 from 512 on; heads of 32, from 512 on of 64; SwiGLU of 8/3 the width.
Small models do better deep and thin (Liu et al. 2024, arxiv.org/abs/2402.14905); SmolLM2 has 19 of width a layer.
Horizon, batch, decay and the schedule's form follow nanochat (github.com/karpathy/nanochat), whose sweeps begin at 1e18
FLOP; rates and batch are its rules carried down to models a thousand times smaller, of which only short runs were tuned
(D378).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from manners.settings import PretrainSettings

PER_PARAMETER = 12.0
"""Tokens for each parameter of the matrices and the head."""
PASSES = 4.0
"""Times that a text is read at most, where nobody set how many tokens: a fifth pass is worth much less than a text as
long (Muennighoff et al. 2023, arxiv.org/abs/2305.16264)."""
DECAY_SPAN = 0.14
"""Share of a run after which weight decay has forgotten a weight: 1 / (rate * decay), in steps of a run.
The product that nanochat has at its reference size, twice as long, since there half of the weights decay at a time."""
DECAY_STEPS = 4.0
"""Steps in which it forgets one at the least: in the 14 % of a run of seven steps it would turn every sign about."""
WARM_UP = 40
"""Steps in which the rates rise, a tenth of the run at most."""
WARM_DOWN = 0.65
"""Share of the run, its last, in which they fall."""
LAST = 0.05
"""Share of the peak that they fall to."""
BATCH_AT, BATCH_TOKENS, BATCH_POWER = 10e6, 2**13, 0.383
"""A run of so many tokens takes batches of so many, and a longer one more, by this power of how much longer it is
(Power Lines, arxiv.org/abs/2505.13738)."""
SHORT_BATCH_POWER = 0.6
"""A shorter one takes smaller ones by this power (D378)."""
MATRIX_RATE, EMBEDDING_RATE, HEAD_RATE = 0.1, 0.5, 0.07
"""Rates times the root of the width, at a batch of `BATCH_TOKENS`, of a run of `BATCH_AT` tokens or more."""
SHORT_POWER, SHORT_MOST = 0.5, 5.0
"""A run of fewer tokens has rates that are higher by this power of how much shorter it is, and by so much at most: with
few steps, each must go further. The direction is that of Bjorck et al. 2024 (arxiv.org/abs/2409.19913), the numbers are
ours (D378)."""
FURTHER_RATE = 0.01
"""Of what goes on, for matrices and all else: a tenth of `MATRIX_RATE`."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama-shaped model."""

    depth: int
    width: int
    heads: int
    hidden: int
    """Width of the SwiGLU."""
    vocabulary: int
    row: int
    """Tokens of a row, which is as far as the model looks."""

    @property
    def matrices(self) -> int:
        """Parameters of the layers' matrices."""
        return self.depth * (4 * self.width**2 + 3 * self.width * self.hidden)

    @property
    def head(self) -> int:
        """Parameters of the head; the embedding has as many."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All of them: the head is not tied to the embedding."""
        return self.matrices + 2 * self.head + (2 * self.depth + 1) * self.width

    @property
    def flops(self) -> float:
        """Floating-point operations a token, forward and backward: 6 a weight, and attention on all of a row."""
        return 6.0 * (self.matrices + self.head) + 12.0 * self.depth * self.width * self.row


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained."""

    row: int
    rows: int
    """A batch."""
    steps: int
    matrix_rate: float
    """Of Muon, whose updates are scaled to what AdamW's are (`match_rms_adamw`)."""
    embedding_rate: float
    head_rate: float
    """Of AdamW; that of the norms is the matrices'."""
    decay: float
    """Of the matrices, a step and unit of rate."""
    warm_up: int
    warm_down: float = WARM_DOWN

    @property
    def batch(self) -> int:
        """Tokens a step."""
        return self.rows * self.row

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return self.steps * self.batch

    def share(self, step: int) -> float:
        """Return the share of the peak rates at a step, from 1: up, constant, and linearly down to `LAST`.

        Source: the trapezoid of Zhai et al. 2022; nanochat for its shares.
        """
        down = max(1.0, self.warm_down * self.steps)
        left = (self.steps - step) / down
        return min(step / max(1, self.warm_up), 1.0, LAST + (1 - LAST) * left)


def shape(settings: PretrainSettings, carried: int) -> Shape:
    """Return the model of a depth, for a text that carries so many entries of a vocabulary."""
    depth = settings.depth
    width = 32 * (depth + 1)
    if width >= 512:
        width = -(-width // 64) * 64
    wanted = settings.vocabulary or min(_vocabulary(depth), max(512, 2 ** int(math.log2(max(512, carried)))))
    if settings.vocabulary is None and carried < 512:
        wanted = carried
    return Shape(
        depth=depth,
        width=width,
        heads=width // (64 if width >= 512 else 32),
        hidden=-(-8 * width // (3 * 32)) * 32,
        vocabulary=wanted,
        row=new_row(settings),
    )


def new_row(settings: PretrainSettings) -> int:
    """Return the tokens of a row of a new model."""
    depth = settings.depth
    return settings.row or (256 if depth <= 4 else 512 if depth <= 8 else 1024 if depth <= 20 else 2048)


def rows_of(batch: int, row: int) -> int:
    """Return the rows of a step of so many tokens: whole ones, and one at least."""
    return max(1, batch // row)


def recipe(settings: PretrainSettings, model: Shape, text: float = math.inf) -> Recipe:
    """Return how a model that begins from nothing is trained, on a text of so many tokens."""
    tokens = settings.tokens or min(PER_PARAMETER * (model.matrices + model.head), PASSES * text)
    rows = rows_of(settings.batch or _batch(tokens), model.row)
    steps = max(1, round(tokens / (rows * model.row)))
    short = min(max(1.0, BATCH_AT / max(1.0, tokens)) ** SHORT_POWER, SHORT_MOST)
    scale = settings.rate * short * math.sqrt(rows * model.row / BATCH_TOKENS) / math.sqrt(model.width)
    found = Recipe(
        row=model.row,
        rows=rows,
        steps=steps,
        matrix_rate=MATRIX_RATE * scale,
        embedding_rate=EMBEDDING_RATE * scale,
        head_rate=HEAD_RATE * scale,
        decay=0.0,
        warm_up=max(1, min(WARM_UP, steps // 10)),
    )
    span = max(DECAY_SPAN * steps, DECAY_STEPS)
    return replace(found, decay=1 / (span * found.matrix_rate) if found.matrix_rate else 0.0)


def fresh_share(settings: PretrainSettings) -> float:
    """Return the share of the rows that are the text's, and not replayed."""
    return 1 - (0.0 if settings.replay is None else settings.replay_share)


def continued(settings: PretrainSettings, parameters: int, model: Shape, text: float = math.inf) -> Recipe:
    """Return how a model that can write already goes on: a tenth of the rates, and down all the way.

    Of a horizon that nobody set, the text fills what is not replayed.

    Ibrahim et al. 2024 (arxiv.org/abs/2403.08763) warm up again to less than the first peak; its embedding moves as far
    as its matrices do.
    """
    row = model.row
    tokens = settings.tokens or min(parameters, PASSES * text / fresh_share(settings))
    rows = rows_of(settings.batch or _batch(tokens), row)
    steps = max(1, round(tokens / (rows * row)))
    rate = settings.rate * FURTHER_RATE * math.sqrt(rows * row / BATCH_TOKENS) / math.sqrt(model.width)
    return Recipe(
        row=row,
        rows=rows,
        steps=steps,
        matrix_rate=rate,
        embedding_rate=rate,
        head_rate=rate,
        decay=0.0,
        warm_up=max(1, min(WARM_UP, steps // 10)),
        warm_down=0.9,
    )


def _vocabulary(depth: int) -> int:
    """Return the entries that suit a depth: of head and embedding no more than of layers, roughly."""
    steps = ((2, 1024), (3, 2048), (5, 4096), (8, 8192), (12, 16_384))
    return next((entries for most, entries in steps if depth <= most), 32_768)


def _batch(tokens: float) -> int:
    """Return the tokens of a batch that suit a run of so many: a power of two, 256 at the least."""
    power = BATCH_POWER if tokens > BATCH_AT else SHORT_BATCH_POWER
    return int(2 ** round(math.log2(max(256.0, BATCH_TOKENS * (tokens / BATCH_AT) ** power))))
