"""One frozen dataclass per stage: every field with its unit and range in the string under it.

Types and ranges are checked when a record is made, so a stage never sees a value that its annotation forbids. Where a
value comes from (default, `manners.toml`, `--set`) is worked out by `manners.settings_load`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from manners.settings_rounds import AuditSettings as AuditSettings
from manners.settings_rounds import JudgeSettings as JudgeSettings
from manners.settings_rounds import LoopSettings as LoopSettings
from manners.settings_upkeep import BackupSettings as BackupSettings
from manners.settings_values import Range, check


@dataclass(frozen=True)
class ModelSettings:
    """The language model that is to be taught."""

    name: str = "smollm2-135m"
    """A Hugging Face id, a local folder, a .gguf file, or `smollm2-135m`."""
    trainable_layers: Annotated[int, Range(1, 10_000)] | Literal["all"] = 4
    """Layers above the cut that every role owns a copy of; `all` is ordinary full fine-tuning."""
    lora_rank: Annotated[int, Range(1, 4096)] | None = None
    """Train low-rank adapters of this rank on the linear layers above the cut; None trains these layers themselves."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; `auto` takes cuda, then mps, then cpu."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights while training and sampling."""
    recompute: bool = False
    """Keep only what a layer is given for its backward, and compute the rest again: less memory, a third more time."""
    trunk_states: Literal["kept", "recomputed"] = "kept"
    """Reward training has them `kept` on the disk, in the format of the weights, or `recomputed` for every pass."""
    context: Annotated[int, Range(16, 1_000_000)] = 1024
    """Longest dialogue with its response, in tokens; longer prompts lose whole turns from the left."""
    chat_template: str | None = None
    """Which of the model's named chat templates lays dialogues out, or a file with one; None takes its `default`."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as {enable_thinking = false}; exports have them in their template."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class DataSettings:
    """Texts of the user's own, in the place of those that ship."""

    prose: str | None = None
    """A UTF-8 text file, its paragraphs apart, to prevent and measure forgetting with; None takes prose that ships."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class PretrainSettings:
    """Learning to write: next-token training on text, from nothing or from a model."""

    text: str | None = None
    """A file or a folder of text: .txt, .md, rows of .jsonl, .csv, .parquet or .arrow; with .gz or .zst, or without."""
    column: str = "text"
    """Of rows: the column that holds a document."""
    separator: str = "<|endoftext|>"
    """Of .txt and .md: the line that stands between two documents; empty where blank lines do."""
    duplicates: Literal["kept", "left out"] = "kept"
    """Documents that are, to the byte, one that came before; they are counted either way."""
    set_aside: Annotated[float, Range(0.0001, 0.9)] = 0.05
    """Share of the documents, by a hash of each, that is never trained on and measures the model."""
    start: str | None = None
    """A model to go on from, named as `model.name` names one; None begins from nothing, as `depth` says."""
    replay: str | None = None
    """Going on: text such as the model was trained on before, read as `text` is, mixed in to keep what it can."""
    replay_share: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the rows that come from `replay`."""
    depth: Annotated[int, Range(1, 64)] = 3
    """Layers of a model from nothing; width, vocabulary, rows, batch, tokens, rates and decay follow from it."""
    vocabulary: Annotated[int, Range(259, 1_000_000)] | None = None
    """Entries of the tokenizer, learnt from the text; None: as `depth` says, as far as the text carries them."""
    row: Annotated[int, Range(16, 1_000_000)] | None = None
    """Tokens of a row, which is how far a new model looks back; None: as `depth` says, or `model.context` going on."""
    tokens: Annotated[int, Range(1, 10**15)] | None = None
    """Length of a run in tokens; None: 12 for each parameter of matrices and head, going on one; 4 passes at most."""
    batch: Annotated[int, Range(16, 100_000_000)] | None = None
    """Tokens of a step, in whole rows; None: as the length of the run says."""
    rate: Annotated[float, Range(0.0, 1000.0)] = 1.0
    """Factor on all learning rates that follow from `depth`."""
    max_grad_norm: Annotated[float, Range(0.0001, 1000.0)] = 1.0
    """Gradients are scaled down to this norm."""
    measures: Annotated[int, Range(1, 10_000)] = 10
    """Measurements on a part of what is set aside, and samples, evenly over the run."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class SampleSettings:
    """How the policy answers prompts, here and in every later stage: what is sampled from is what is scored."""

    temperature: Annotated[float, Range(0.05, 5.0)] = 0.7
    """Divides the logits, when sampling and when scoring alike."""
    answers: Annotated[int, Range(2, 64)] = 3
    """Responses per prompt when asking; each two different ones are compared, so 3 make 3 comparisons."""
    max_new_tokens: Annotated[int, Range(1, 100_000)] = 256
    """Length limit of a response, in tokens; the demo sets 32. Judges see what it cuts off cut off, and are told so."""
    batch: Annotated[int, Range(1, 100_000)] = 96
    """Responses drawn side by side; changes speed and memory only."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class CrowdSettings:
    """The simulated annotators that stand in for people in the demo."""

    taste: str = "manners"
    """Which hidden taste the crowd shares; `random` has none and answers by coin."""
    annotators: Annotated[int, Range(1, 100_000)] = 16
    """How many simulated people."""
    verdicts_per_comparison: Annotated[int, Range(1, 1000)] = 2
    """How many different annotators see each comparison."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class SFTSettings:
    """Supervised fine-tuning: the form of an answer, from examples."""

    examples: str | None = None
    """A file of dialogues, or of prompts with responses; None takes what annotators preferred, from the store."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Which column of that file is which field of ours, such as {question = "prompt", reply = "response"}."""
    skip_bad: bool = False
    """Leave out, and count, rows of that file that cannot be read, instead of stopping at the first."""
    epochs: Annotated[int, Range(1, 100)] = 2
    """Passes over the examples; the loss on those set aside is shown after each."""
    batch: Annotated[int, Range(1, 100_000)] = 16
    """Dialogues per optimiser step; how they are packed into rows changes speed and memory only."""
    learning_rate: Annotated[float, Range(0.0, 1.0)] | None = None
    """Peak of AdamW's step, which rises over a tenth of the steps, then falls to 0; None: 1 % of a tensor's spread."""
    set_aside: Annotated[float, Range(0.01, 0.9)] = 0.1
    """Share of the dialogues' opening turns that is never trained on, and measures what was learned."""
    limit: Annotated[int, Range(2, 1_000_000_000)] | None = None
    """Train on at most this many dialogues, drawn at random; None takes all."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class RewardSettings:
    """The reward model: an ensemble of branches with a scalar head, trained on single verdicts."""

    members: Annotated[int, Range(1, 64)] = 3
    """Ensemble members: the same data, each with its own head and order."""
    epochs: Annotated[int, Range(1, 100)] | None = None
    """Passes over the comparisons that are trained on; None: as many as do best on a slice that a scout never saw."""
    batch: Annotated[int, Range(1, 10_000)] = 12
    """Comparisons per optimiser step; those of one prompt stay together."""
    learning_rate: Annotated[float, Range(0.0, 1.0)] | None = None
    """Peak of AdamW's step, which rises over a tenth of the steps, then falls to 0; None: 1 % of a tensor's spread."""
    set_aside: Annotated[float, Range(0.02, 0.9)] = 0.2
    """Share of the groups of comparisons that is never trained on and measures the model."""
    annotators: Literal["human", "ai", "simulated", "human+ai"] | None = None
    """Whose verdicts are learned from; None means the only kind there is, and refuses where there are several;
    `human+ai` adds an admitted judge's to people's, for training alone."""
    human_share: Annotated[float, Range(0.1, 1.0)] = 0.5
    """Share of all weight that people's verdicts keep, at least, beside a judge's (`human+ai`)."""
    user_share: Annotated[float, Range(0.001, 1.0)] = 0.05
    """Most that one user of the chat, or of another program, weighs in training."""
    account_share: Annotated[float, Range(0.001, 1.0)] = 0.25
    """Most that the chat and the programs of one account weigh in training, whatever users they name."""
    limit: Annotated[int, Range(2, 1_000_000_000)] | None = None
    """Train on at most this many comparisons, drawn at random; None takes all."""
    curve: bool = True
    """Also train one member on 25 % and 50 % of the verdicts, to say what more comparisons would buy."""
    augment: Annotated[float, Range(0.0, 0.5)] = 0.0
    """Share of the pairs trained on that is made of answers at hand: worse ones, and others as good; 0: none."""
    length_head: bool = False
    """Explain verdicts by quality and length, a head for each, and score by quality alone, which is kept off length."""
    reliability: bool = False
    """Weigh verdicts in training by how reliable whoever gave them is, as agreement with others shows it."""
    smoothing: bool = False
    """Let a share of each verdict count for the other side in training: as often as people err, by their agreement."""
    camps: Annotated[int, Range(1, 8)] = 1
    """Camps of annotators who want different things, at most, as far as verdicts bear them out; 1: all are one."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)

    @property
    def branches(self) -> int:
        """The members, and the one kept out of the reward, which there is where `epochs` does not say how long."""
        return self.members + (self.epochs is None)


@dataclass(frozen=True)
class PPOSettings:
    """Proximal policy optimisation against the reward model. Names follow the method's papers."""

    start: Literal["initial", "current"] = "initial"
    """What the policy begins as: the start version, or the promoted policy; the KL is to the start version anyway."""
    passes: Annotated[float, Range(0.01, 10_000.0)] = 4.0
    """Length of a run: responses to a training prompt, on average, as far as `most_episodes` allows."""
    most_episodes: Annotated[int, Range(2, 1_000_000_000)] = 20_000
    """Responses at most in a run, however many prompts there are; one update is made in any case."""
    updates: Annotated[int, Range(1, 1_000_000)] | None = None
    """Rollout batches, each followed by `epochs` passes of optimisation; None: as `passes` says; the demo sets 12."""
    batch: Annotated[int, Range(2, 1_000_000)] = 64
    """Episodes (responses) per rollout."""
    answers: Annotated[int, Range(1, 1000)] = 4
    """Responses to each prompt of a rollout: each is measured against the others, 1 against none."""
    minibatch: Annotated[int, Range(1, 1_000_000)] = 32
    """Episodes per optimiser step."""
    epochs: Annotated[int, Range(1, 100)] = 2
    """Passes over each rollout."""
    learning_rate: Annotated[float, Range(0.0, 1.0)] | None = None
    """Peak of AdamW's step for policy and value; warms up over a tenth of the updates, then falls linearly to zero;
    None: 0.05 % of a tensor's spread."""
    kl_coefficient: Annotated[float, Range(0.0, 100.0)] = 0.08
    """Weight of the per-token KL penalty against the start version, in reward units per nat."""
    kl_target: Annotated[float, Range(0.001, 10_000.0)] | None = None
    """Adapt the coefficient towards this KL, in nats per response; None keeps it fixed."""
    kl_horizon: Annotated[int, Range(1, 100_000_000)] = 2000
    """Episodes over which the adaptive coefficient reacts."""
    kl_stop: Annotated[float, Range(0.01, 10_000.0)] = 30.0
    """Stop, and keep the best version so far, when a rollout's KL passes this many nats per response; in proportion
    more where answers were longer than 32 tokens at the start."""
    clip: Annotated[float, Range(0.001, 10.0)] = 0.2
    """Half-width of the interval around 1 in which the ratio earns anything."""
    value_clip: Annotated[float, Range(0.001, 1000.0)] = 0.32
    """How far a value may move from its rollout estimate within an update, in reward units."""
    value_coefficient: Annotated[float, Range(0.0, 100.0)] = 0.1
    """Weight of the value loss beside the policy loss (shared branch), in nats per squared reward unit."""
    value: Literal["separate", "shared"] = "shared"
    """`shared`: the value head sits on the policy branch; `separate`: on its own, started from the reward branch, with
    a head of zero where a prompt has several answers."""
    gamma: Annotated[float, Range(0.0, 1.0)] = 1.0
    """Discount per token."""
    lam: Annotated[float, Range(0.0, 1.0)] = 1.0
    """Trace decay of the generalised advantage estimate; below 1, what early tokens earn is lost until the baseline has
    learnt to see it, which a run of this length does not reach."""
    max_grad_norm: Annotated[float, Range(0.0001, 1000.0)] = 1.0
    """Gradients are scaled down to this norm."""
    unfinished_penalty: Annotated[float, Range(0.0, 1000.0)] = 0.4
    """Taken off the score of a response that the length limit cut off, in reward units."""
    prose_coefficient: Annotated[float, Range(0.0, 1000.0)] = 1.0
    """Weight, beside the policy loss, of the divergence from the start version on plain text, in nats per token."""
    ptx_coefficient: Annotated[float, Range(0.0, 1000.0)] = 0.0
    """Weight of the next-token loss on the same text, as in pre-training, in nats per token (PPO-ptx); 0: none."""
    forgetting_limit: Annotated[float, Range(0.0, 1000.0)] = 0.03
    """Largest rise of perplexity on plain text, as a share, of a version that is kept; past it the step is halved."""
    pessimism: Annotated[float, Range(0.0, 100.0)] | Literal["minimum"] = 0.0
    """Taken off an answer's score for each standard deviation by which the reward model's members differ about it;
    `minimum`: the score is that of the member that likes it least."""
    worst_camp: Annotated[float, Range(0.0, 1.0)] = 0.0
    """Between the mean of annotators (0) and whichever camp of theirs is served worst (1); see `reward.camps`."""
    validate_every: Annotated[int, Range(1, 1_000_000)] = 4
    """Updates between measurements on the validation prompts, by which the best version is kept."""
    validation_prompts: Annotated[int, Range(1, 1_000_000)] = 40
    """Prompts of each such measurement; each is answered twice."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class DPOSettings:
    """Direct preference optimisation: a policy from the verdicts that `reward` chooses, without a reward model."""

    beta: Annotated[float, Range(0.0001, 100.0)] = 0.1
    """What a nat of difference from the start version is worth in log-odds of a verdict; less goes further."""
    passes: Annotated[int, Range(1, 100)] | None = None
    """Passes over the comparisons that are trained on; None: as many as do best on a slice that a scout never saw."""
    batch: Annotated[int, Range(1, 10_000)] = 12
    """Comparisons per optimiser step; those of one prompt stay together."""
    learning_rate: Annotated[float, Range(0.0, 1.0)] | None = None
    """Peak of AdamW's step, as in reward training; None: 0.05 % of a tensor's spread."""
    kl_stop: Annotated[float, Range(0.01, 10_000.0)] = 30.0
    """Stop, and keep the policy as last looked at, when its KL passes this many nats per response; in proportion
    more where answers were longer than 32 tokens at the start."""
    validation_prompts: Annotated[int, Range(1, 1_000_000)] = 40
    """Prompts that the policy answers, twice each, to be looked at: before, after each quarter of its steps."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class EvaluateSettings:
    """The policy against the current version, on prompts that nothing was trained on."""

    prompts: Annotated[int, Range(2, 1_000_000)] = 130
    """Evaluation prompts used, drawn by the seed; all there are, if fewer."""
    samples: Annotated[int, Range(1, 1000)] = 4
    """Answers of each version per prompt; also the n of best-of-n."""
    length_tolerance: Annotated[float, Range(0.0, 1.0)] = 0.1
    """Two answers are of matched length when their lengths in tokens differ by at most this share of the longer."""
    bootstrap: Annotated[int, Range(100, 1_000_000)] = 2000
    """Resamples of the prompts' openings behind every interval but those of win rates, which need none."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class ServeSettings:
    """The pages for labelling and chatting, and the server for other programs."""

    port: Annotated[int, Range(0, 65_535)] = 8000
    """Where to listen; the next free one is taken if it is in use, any free one for 0."""
    seats: Annotated[int, Range(1, 1024)] = 16
    """Answers that are drawn side by side; more wait their turn. With 1, a chat never asks which of two is better."""
    max_new_tokens: Annotated[int, Range(1, 1_000_000)] = 256
    """Longest answer in tokens where the request names no length."""
    overlap: Annotated[int, Range(1, 100)] = 2
    """Verdicts that a comparison gets, from different people."""
    agree: Annotated[int, Range(1, 100)] = 2
    """It gets no more once this many chose the same."""
    random_share: Annotated[float, Range(0.3, 1.0)] = 0.5
    """Share of comparisons drawn uniformly at random; the rest are those that a reward model chose, or on which
    its members differ."""
    gold_share: Annotated[float, Range(0.0, 0.5)] = 0.1
    """Share of comparisons with a known verdict, where there are any, put in to measure annotators."""
    repeat_share: Annotated[float, Range(0.0, 0.5)] = 0.05
    """Share of comparisons that a person has judged before, to measure how far they agree with themselves."""
    lease: Annotated[float, Range(1.0, 1_440.0)] = 15.0
    """Minutes for which a comparison that is shown to somebody counts as one of its `serve.overlap` verdicts."""
    shortest_view: Annotated[int, Range(0, 10_000)] = 400
    """Milliseconds that a pair must have been visible before a verdict counts: a double click sees no second one."""
    retire_after: Annotated[int, Range(1, 100)] = 3
    """People who must skip a comparison before nobody is asked any more."""
    chat_ask: Annotated[float, Range(0.0, 1.0)] = 0.15
    """Share of turns in a chat on which two answers are shown and the person is asked which is better."""
    share_chats: bool = False
    """Whether comparisons from chats and programs are also put before other annotators, and quoted in reports."""
    allow_origins: str = ""
    """Sites whose pages may call `/v1` from a browser, with spaces between them (https://app.example.org), or `*`."""
    metrics: Literal["signed in", "this machine"] = "signed in"
    """Who sees /metrics: who may see the dashboard, and keys for it; or whatever runs on this machine, too."""
    answers_a_second: Annotated[float, Range(0.01, 10_000.0)] = 10.0
    """Answers a second that one account gets on `/v1` in the long run; 128 at once, the most of one request."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, by stage."""

    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Every random choice follows from it."""
    checkpoint_every: Annotated[float, Range(0.0, 86_400.0)] = 60.0
    """Seconds between two checkpoints of a run: what is lost when it is killed; changes nothing about how it ends."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    crowd: CrowdSettings = field(default_factory=CrowdSettings)
    sft: SFTSettings = field(default_factory=SFTSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    backup: BackupSettings = field(default_factory=BackupSettings)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)
