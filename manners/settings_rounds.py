"""Settings of what goes on beside and between trainings: `manners audit`, `manners judge` and `manners loop`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from manners.settings_values import Range, check


@dataclass(frozen=True)
class AuditSettings:
    """What a reward model likes, measured on pairs that it did not learn from, and how a policy behaves."""

    pairs: Annotated[int, Range(5, 1_000_000)] = 64
    """Outside pairs that are also written in other forms and probed, drawn by the seed: some 35 readings each."""
    most: Annotated[int, Range(5, 10_000_000)] = 2000
    """Outside pairs that accuracy and calibration are measured on, drawn by the seed; all there are, if fewer."""
    cases: Annotated[int, Range(5, 1_000_000)] = 100
    """Prompts, questions or pairs of each kind that a policy's behaviour is measured on, drawn by the seed."""
    tokens: Annotated[int, Range(1, 1_000_000)] = 48
    """Longest answer in tokens there: whether it refuses, and whether it takes a question up, shows by then."""
    sets: str | None = None
    """A folder of published sets that a policy is asked as well, those that are there (`manners audit data`); None: the
    workspace's own, `audit-sets`."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class JudgeSettings:
    """An AI that judges comparisons, and how far it may go."""

    url: str | None = None
    """A server that speaks OpenAI's chat completions (http://127.0.0.1:8001/v1); None asks a version of this workspace.
    A key for it is taken from the environment, MANNERS_JUDGE_KEY."""
    model: str | None = None
    """Which of that server's models is asked."""
    own: str = ""
    """Authors, with spaces between them, whose answers are of the judge's own model, as far as that is known."""
    checked: Annotated[int, Range(1, 1_000_000)] = 600
    """Comparisons, the newest, on which it is held against several people's verdicts."""
    probes: Annotated[int, Range(0, 10_000)] = 64
    """Comparisons on which an order to the judge, and flattery, is put into the worse answer, as far as there are, one
    of each opening; with fewer than 35 no judge is admitted."""
    most: Annotated[int, Range(0, 10_000_000)] = 2000
    """Comparisons at most that an admitted judge judges beyond those, in one run."""
    samples: Annotated[int, Range(1, 99)] = 5
    """Verdicts that are drawn for one, where the server tells no probabilities."""
    parallel: Annotated[int, Range(1, 64)] = 4
    """Requests that are on their way to the server at one time."""
    timeout: Annotated[float, Range(0.1, 3600.0)] = 60.0
    """Seconds that one of its answers may take."""
    retries: Annotated[int, Range(0, 20)] = 4
    """Times that it is asked again, after 1, 2, 4... seconds, before the run stops."""
    requests: Annotated[int, Range(1, 1_000_000_000)] = 20_000
    """Requests of one run at most; then it ends with what it has."""
    tokens: Annotated[int, Range(1, 1_000_000_000_000)] = 20_000_000
    """Tokens of one run at most, as the server counts them."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@dataclass(frozen=True)
class LoopSettings:
    """Rounds one after the other (`manners loop`): what each asks and waits for, and what all of them may use up."""

    prompts: Annotated[int, Range(2, 1_000_000)] = 200
    """Training prompts that a round asks about at most: those nobody was asked about, or else known ones again."""
    verdicts: Annotated[int, Range(1, 10_000_000)] = 200
    """New verdicts that a round waits for before it learns, unless --when says another moment."""
    judgements: Annotated[int, Range(10, 1_000_000)] = 60
    """Comparisons that a round opens for people to judge its policy by; a simulated crowd judges without."""
    most_verdicts: Annotated[int, Range(1, 1_000_000_000)] | None = None
    """No round is begun once so many verdicts are there to learn from; None: as many as come."""
    hours: Annotated[float, Range(0.0, 100_000.0)] | None = None
    """No round is begun so many hours after the loop was; None: no limit."""
    kl: Annotated[float, Range(0.0, 10_000.0)] | None = None
    """No round is begun once the promoted policy is so many nats per response from the start version."""
    keep: Annotated[int, Range(1, 10_000)] | None = None
    """After each round versions that nothing needs go, but for so many of the newest of each kind; None: none goes."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)
