"""Records that pass between the stages: frozen, small, enums instead of flags. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum


class Role(StrEnum):
    """Who speaks in a turn of a dialogue."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue."""

    role: Role
    text: str


DELETED = "[deleted]"
"""What stands where a person's words were, after they had them deleted."""
Dialogue = tuple[Turn, ...]
"""A prompt is a dialogue whose last turn is the user's."""


def opening(prompt: Dialogue) -> str:
    """Return the conversation's first user turn without regard to case and white space: the group of a comparison."""
    first = next((turn for turn in prompt if turn.role is Role.USER), prompt[0])
    return " ".join(first.text.split()).casefold()


class FinishReason(StrEnum):
    """Why a response ends where it ends; masks and penalties are decided by this, never by looking at token ids."""

    STOP = "stop"
    """The writer ended it: the end-of-turn token was drawn, or a person wrote it."""
    LENGTH = "length"
    """It was cut off by the length limit."""
    UNKNOWN = "unknown"
    """Imported without saying; treated as ended."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model drew a response: plain ancestral sampling at a temperature, with no hidden warpers."""

    temperature: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Response:
    """One assistant turn written for a prompt. `author` is a model version's name, or a person or source."""

    text: str
    author: str
    finish_reason: FinishReason = FinishReason.UNKNOWN
    sampling: Sampling | None = None


class AnnotatorKind(StrEnum):
    """What sort of annotator gives a verdict; never mixed up in any table, file or plot."""

    HUMAN = "human"
    AI = "ai"
    SIMULATED = "simulated"


LOCAL = "owner"
"""Name of whoever sits at the machine, where there are no accounts; no account may have it."""
JUDGE = "judge:"
"""How the names of our judges begin."""


@dataclass(frozen=True, slots=True)
class Annotator:
    """Whoever gives verdicts."""

    name: str
    kind: AnnotatorKind
    account: int | None = None
    """The account that they are, or a user of whose programs; None for whom a file names, and for the owner of a
    machine without accounts. The same name without the account, or with another, is somebody else."""

    @property
    def is_judge(self) -> bool:
        """Whether it is an AI that this tool asks itself (`manners judge`)."""
        return self.kind is AnnotatorKind.AI and self.name.startswith(JUDGE)

    @property
    def in_file(self) -> Annotator:
        """Whom a file means by them: our own judges are asked here, and no file speaks for one."""
        return replace(self, name=f"file of {self.name}") if self.is_judge else self

    @property
    def key(self) -> str:
        """A text that no two annotators of one kind share."""
        return self.name if self.account is None else f"{self.account}\0{self.name}"


class Choice(StrEnum):
    """What an annotator answered. Sides are those shown: only `swapped` turns them round."""

    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"
    BOTH_BAD = "both_bad"
    SKIP = "skip"

    def swapped(self) -> Choice:
        """Return the same opinion about the same two texts with the sides exchanged."""
        return {Choice.LEFT: Choice.RIGHT, Choice.RIGHT: Choice.LEFT}.get(self, self)


class AskedHow(StrEnum):
    """How a comparison came to be asked."""

    RANDOM = "random"
    """Drawn uniformly; the only kind that measures without bias."""
    IMPORTED = "imported"
    EVALUATION = "evaluation"
    """Two versions, blind, on unused prompts; never trained on."""
    CHAT = "chat"
    """Two answers to a turn of somebody's conversation, put before that person."""
    API = "api"
    """Put before a user of another program, which told us."""
    GOLD = "gold"
    """Its verdict is known: it measures annotators; never trained on."""
    CANDIDATE = "candidate"
    """The promoted version's answer to a turn of somebody's conversation and a candidate's, put before that person;
    neither it nor anything that begins with the same opening is ever trained on."""
    ADVERSARIAL = "adversarial"
    """The answer of many that a reward model likes best, where that is suspicious, and an ordinary one: chosen by the
    model that is to learn from it, so that it is trained on and nothing is measured on it."""


VERSUS = frozenset({AskedHow.EVALUATION, AskedHow.CANDIDATE})
"""What is asked to find out which of two versions is better."""
VOLUNTEERED = frozenset({AskedHow.CHAT, AskedHow.API})
"""Comparisons that were put before people who came by themselves; a queue may put them before others too."""
MEASURES = VERSUS | {AskedHow.GOLD}
"""What is asked to measure something, and never to learn from."""


class DrawnHow(StrEnum):
    """Why the queue put a comparison before an annotator."""

    RANDOM = "random"
    """Uniformly among those that this annotator may judge; the only kind that measures without bias."""
    DISAGREEMENT = "disagreement"
    """The members of the reward model disagree about it most."""
    ADVERSARIAL = "adversarial"
    """It was opened for an adversarial round: before all others, but never by chance."""
    GOLD = "gold"
    REPEAT = "repeat"
    """The annotator has judged it before: it measures how far they agree with themselves."""


@dataclass(frozen=True, slots=True)
class OpenComparison:
    """A comparison that people may be asked about, as the queue needs to know it."""

    comparison: int
    prompt: int
    authors: frozenset[str] = frozenset()
    """Who wrote the two responses: nobody judges their own."""
    gold: bool = False
    """Whether its verdict is known, and it measures annotators."""
    pair: frozenset[int] = frozenset()
    """The two responses: who has judged them is not asked about them again under another number."""
    adversarial: bool = False
    """Whether a reward model chose it: it comes before others, and is never drawn at random."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A comparison that the queue puts before an annotator."""

    comparison: int
    drawn: DrawnHow
    probability: float
    """With which this annotator was given this comparison now."""
    exchanged: bool
    """Whether the sides are shown the other way round."""
    pool: int | None = None
    """How many comparisons they could have been given by this way of drawing; None where that is not known, and of a
    draw by chance that was made beside adversarial ones: it weighs as any of its pool."""


class AccountRole(StrEnum):
    """What an account may do."""

    OWNER = "owner"
    """Everything."""
    REVIEWER = "reviewer"
    """Label, chat, look at the dashboard, and decide about what was flagged."""
    ANNOTATOR = "annotator"
    """Label and chat."""
    VIEWER = "viewer"
    """Look at the dashboard."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One annotator's answer to one comparison; append-only, a correction is a new verdict."""

    choice: Choice
    annotator: Annotator
    strength: int | None = None
    """1 slightly, 2 clearly, 3 much better; None where it was not asked."""
    created_at: datetime | None = None
    """UTC, as whoever sent it says, or else when it came; None only before it is stored. It orders nothing: clocks go
    back, and lie."""
    seconds: float | None = None
    """How long the annotator took, where known."""
    reasons: tuple[str, ...] = ()
    comment: str = ""
    exchanged: bool = False
    """Whether the annotator saw the comparison's sides the other way round; `choice` is of the comparison's own
    sides."""
    drawn: DrawnHow | None = None
    """Why the queue drew the comparison for this annotator; None where no queue did."""
    draw_probability: float | None = None
    """With which the queue drew it then; None where no queue did."""
    draw_pool: int | None = None
    """Out of how many the queue drew it; None where no queue did, or where it is not recorded (`Draw.pool`)."""
    arrived: int | None = field(default=None, compare=False, repr=False)
    """Its place in the order in which the store's verdicts came; None before it is stored."""

    @property
    def shown_choice(self) -> Choice:
        """The choice of the sides as the annotator saw them."""
        return self.choice.swapped() if self.exchanged else self.choice


def latest_verdicts(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Return the verdicts that count: of each annotator the latest, in the order in which they first answered.

    The latest is the one that came last, whatever their times say: by their places in the store's order (`arrived`), or
    in the order in which they are given here where one of two is not stored.
    """
    counting: dict[Annotator, Verdict] = {}
    for verdict in verdicts:
        before = counting.get(verdict.annotator)
        if before is None or not _came_before(verdict.arrived, before.arrived):
            counting[verdict.annotator] = verdict
    return tuple(counting.values())


def latest_of(comparison: Comparison, annotator: Annotator) -> Verdict | None:
    """Return the verdict of one annotator that counts; None where it has given none."""
    return next((v for v in latest_verdicts(comparison.verdicts) if v.annotator == annotator), None)


def _came_before(place: int | None, other: int | None) -> bool:
    return place is not None and other is not None and place < other


@dataclass(frozen=True, slots=True)
class Bet:
    """What a comparison of two versions counts for by one kind of annotator: placed once, and never changed."""

    kind: AnnotatorKind
    stake: float
    """Mean of the verdicts: 1 all for the left, -1 all for the right; a tie, and both bad, is 0."""
    read: int
    """Verdicts of that kind on the comparison when it was placed, the first ones; later ones do not touch it."""
    upto: int | None = None
    """The last of them by its place in the store's order (`Verdict.arrived`); None where that was not yet kept."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses to one prompt in the order shown, with every verdict given on them."""

    prompt: Dialogue
    left: Response
    right: Response
    asked_how: AskedHow
    ask_probability: float | None = None
    """Probability with which this comparison was put to the annotator; None where unknown (imports)."""
    verdicts: tuple[Verdict, ...] = ()
    id: int | None = None
    """The store's key; None before it is stored."""
    reported: bool = False
    """Whether a reviewer has upheld a report of it, or of one of its responses; never trained on."""
    kept: bool = False
    """Whether its `opening` is that of a prompt that the store keeps for validation or evaluation, or that a candidate
    was compared on; never trained on."""
    bets: tuple[Bet, ...] = ()
    """What it counts for in an evaluation, at most one for each kind of annotator."""
    asked_by: str | None = None
    """The reward model that chose its answers; None where none did, and where a file does not say."""

    @property
    def by_model(self) -> bool:
        """Whether a reward model chose it: it is trained on, and nothing is measured on it."""
        return self.asked_how is AskedHow.ADVERSARIAL

    def volunteered(self, verdict: Verdict) -> bool:
        """Return whether a verdict on it is of somebody who came by themselves, and whom no queue asked to label."""
        return self.asked_how in VOLUNTEERED and verdict.drawn is None

    def turned(self) -> Comparison:
        """Return the same comparison with its sides exchanged; what was said, and how it was shown, stays."""
        verdicts = (replace(v, choice=v.choice.swapped(), exchanged=not v.exchanged) for v in self.verdicts)
        bets = tuple(replace(bet, stake=-bet.stake) for bet in self.bets)
        return replace(self, left=self.right, right=self.left, verdicts=tuple(verdicts), bets=bets)


class VersionKind(StrEnum):
    """What a model version is for."""

    POLICY = "policy"
    REWARD = "reward"
    PRETRAIN = "pretrain"
    """A whole model, by next-token training."""
    SFT = "sft"
    """What examples of answers have taught: a branch, as a policy is."""


class PromptUse(StrEnum):
    """What a prompt may be used for; fixed when it enters the store."""

    TRAIN = "train"
    """Asked about, and trained on."""
    VALIDATE = "validate"
    """Chooses among versions during PPO; never trained on, never evaluated on."""
    EVALUATE = "evaluate"
    """The final evaluation only."""


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A prompt with its place in the store."""

    id: int
    dialogue: Dialogue
    use: PromptUse


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Return whether `value` lies outside the interval."""
        return not self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Answer:
    """A response drawn by a model, with what the stages after it need: token ids in, token ids out."""

    prompt: Dialogue
    response: Response
    prompt_ids: tuple[int, ...] = field(repr=False)
    response_ids: tuple[int, ...] = field(repr=False)
    """With the end-of-turn token when `finish_reason` is STOP."""

    @property
    def length(self) -> int:
        """Number of response tokens, the end-of-turn token included."""
        return len(self.response_ids)

    @property
    def finished(self) -> bool:
        """Whether the model ended the response itself."""
        return self.response.finish_reason is not FinishReason.LENGTH
