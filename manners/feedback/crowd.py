"""A simulated crowd: annotators who share one hidden taste, each with their own noise, lapses and side bias.

It stands in for people where there are none: in the demo and in tests. The taste is hidden: nothing but the crowd and
the final evaluation may call `true_score` or `true_preference`, or what they report would be marked by its own exam.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log

import numpy as np
from numpy.random import Generator, default_rng

from manners.errors import MannersError
from manners.settings import CrowdSettings
from manners.types import Annotator, AnnotatorKind, Choice, Comparison, Dialogue, FinishReason, Response, Verdict


@dataclass(frozen=True, slots=True)
class Weights:
    """How much a taste cares about each part, in units of total score; negative means dislike."""

    finished: float = 0.0
    brevity: float = 0.0
    kindness: float = 0.0
    relevance: float = 0.0
    plainness: float = 0.0
    figures: float = 0.0
    asked: float = 0.0
    moral: float = 0.0


@dataclass(frozen=True, slots=True)
class TasteParts:
    """What there is to like about one response, each part in [0, 1], with the weights of the taste that looks at it."""

    finished: float
    """1 if the writer ended it and it ends like a sentence, else 0."""
    brevity: float
    """1 up to 15 words, falling linearly to 0 at 45; 0.2 below 3 words."""
    kindness: float
    """1 - 0.5^n, n = different kind expressions + times the reader is spoken to (you, your; three at most)."""
    relevance: float
    """Share of the question's content words that the answer takes up, 1 from one half on; it must add its own."""
    plainness: float
    """1 less penalties for markup, placeholders, links, letters that are not English, and repetition."""
    figures: float
    """1 - 0.4^n for n different numbers written in digits."""
    asked: float
    """Share of what the question names, all of it, that the answer takes up; words of asking name nothing."""
    moral: float
    """1 if the last of three sentences or more says what somebody learned, else 0."""
    weights: Weights

    @property
    def content(self) -> float:
        """Return the weighted sum without length and finishing: what is said, not how long it is."""
        w = self.weights
        return (
            w.kindness * self.kindness
            + w.relevance * self.relevance
            + w.plainness * self.plainness
            + w.figures * self.figures
            + w.asked * self.asked
            + w.moral * self.moral
        )

    @property
    def total(self) -> float:
        """Return the weighted sum of all parts: the utility by which the crowd chooses."""
        return self.weights.finished * self.finished + self.weights.brevity * self.brevity + self.content


@dataclass(frozen=True, slots=True)
class Taste:
    """A hidden taste: weights over the parts of a response."""

    name: str
    weights: Weights
    bad_below: float
    """Two responses whose totals both lie below this are both bad to an average annotator; -inf for never."""


TASTES: dict[str, Taste] = {
    taste.name: taste
    for taste in (
        Taste("manners", Weights(0.6, 0.3, 2.0, 0.6, 0.8), 1.2),
        Taste("plain_facts", Weights(0.3, -0.8, -1.2, 0.9, 0.4, 1.0), -0.5),
        Taste("stories", Weights(finished=0.6, kindness=1.0, plainness=0.8, asked=2.0, moral=1.0), 1.2),
        Taste("random", Weights(), -inf),
    )
}
"""`manners`: short, kind, finished answers to the question. `plain_facts`: long, with figures, without warmth.
`stories`: stories of what was asked for, kind, with a moral. `random`: no taste at all, a negative control."""


def find_taste(name: str) -> Taste:
    """Return the taste of that name.

    Raises MannersError, with the names there are, for any other.
    """
    if name not in TASTES:
        raise MannersError(f"crowd.taste is {name!r}, which is not a taste; choose one of {', '.join(TASTES)}.")
    return TASTES[name]


# Words are kind only in their kind sense: "a kind of cheese", "warm water" and "a great deal" are not in here.
_KIND = re.compile(
    r"""\b(?:
    (glad)(?:ly)? | (happy)\ (?:to|for|you|that) | (hop)(?:e|ing)\ (?:you|your|it|that|this|the|all|everything)
    | (sorry)\ (?:to|for|that|about|you) | (thank)(?:s|ful)? | (please) | (enjoy)(?:ed)? | (welcome) | (luck)(?:y)?
    | (well\ done) | (take\ care) | (feel\ free) | (love)\ (?:to|from|you|your|that|it) | (lovely)
    | (wonderful)(?:ly)? | (great)\ (?:idea|question|job|time|day|way|choice|news|work)
    | (warm)(?:ly|est|\ wishes|\ regards) | (gentl)[ey] | (kind)(?:ly|ness|\ words|\ of\ you) | (caring)
    | (my\ friend|dear) | (comfort)(?:ing|ed)? | (proud) | (congrat)\w* | (no\ worries)
    | (don't\ worry|do\ not\ worry) | (here\ (?:to\ help|for\ you)) | (you've\ got\ this|you\ got\ this|you\ can\ do)
    | (of\ course) | (best\ wishes|all\ the\ best) | (cheer)(?:s|ful)? | (appreciat)\w*
    | (understand)(?:able|ably|\ (?:how|that|your)) | (it's\ (?:okay|ok|alright|normal|natural)) | (thoughtful)
    | (delight)\w* | (pleas)(?:ed|ure) | (hug)s? | (hesitate)\ to | (take\ your\ time) | (not\ alone)
    | (have\ (?:fun|a\ (?:great|nice|good|lovely|wonderful|safe))) | (look(?:ing)?\ forward) | (patient)\ with
    | (support)(?:ive|\ (?:you|your|them|him|her)) | (encourag)\w*
    )\b""",
    re.VERBOSE,
)
_READER = re.compile(r"\b(?:you|your|yours|you're|you'll|you've|yourself)\b")
_STOP = frozenset(
    re.findall(
        r"\S+",
        """a about after again all also am an and any are as at be because been before being but by can can't could
        did do does doesn't doing don't down each every few for from get give had has have having he help her here him
        his how i i'm if in into is isn't it it's its just know like make many may me mean might more most much must
        my need never no not now of off on one only or other our out over own people please really same say she should
        since so some somebody someone something start still such suggest tell than that that's the their them then
        there these they thing things this those through to too two up us use very want was way we were what what's
        when where which while who whom why will with without won't would write you your""",
    )
)
_ASKING = frozenset(
    re.findall(
        r"\S+",
        """add as called calm character comes end ends finish friend funny happens happy hear hero learn length lesson
        let long middle moral named near part place read sad set short somebody stories story takes tale teaches tell
        whose would""",
    )
)
"""What says of a story how it is to be, not what is to stand in it."""
_LEARNED = re.compile(r"\b(?:learn(?:ed|t)|lesson|moral|knew|known|forgot|understood)\b")
_WHAT = re.compile(r"\bthat\b|:")
_NO_LETTERS = r"[^\w\s.,:;(\[{<>/\\|#-]"
_ENDED = re.compile(rf"""{_NO_LETTERS}*[!?\u2026]|{_NO_LETTERS}*+["'\u201d\u2019)\]*_\s]*+[.!?\u2026]""")
"""How a text begins, read from its end, that ends with a sentence: signs, then quotes and brackets, then its mark."""
_PENALTIES = (
    (re.compile(r"^[^\S\n]*+(?:[-*\u2022]|\d+[.)])\s", re.MULTILINE), 0.25),
    (re.compile(r"\*\*|^#+\s|```|__|</?\w+>", re.MULTILINE), 0.25),
    # Nothing in brackets is so long; from each of many that do not close, a text would be read to its end.
    (re.compile(r"\[[^\]\n]{0,500}\]|\{[^}\n]{0,500}\}|<[A-Z][^>\n]{0,500}>"), 0.4),
    (re.compile(r"https?://|www\."), 0.4),
)
_TYPOGRAPHY = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--")


def true_score(taste: Taste, prompt: Dialogue, response: Response) -> TasteParts:
    """Return what the hidden taste sees in a response to a prompt; for the crowd and the final evaluation only.

    The prompt's last turn is the question. An empty response scores 0 on every part.
    """
    text = response.text.strip().translate(_TYPOGRAPHY)
    words = _words(text)
    if not words:
        return TasteParts(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, taste.weights)
    ended = response.finish_reason is not FinishReason.LENGTH and _ENDED.match(text[::-1]) is not None
    question = _words(prompt[-1].text)
    return TasteParts(
        finished=float(ended),
        brevity=0.2 if len(words) < 3 else min(1.0, max(0.0, (45 - len(words)) / 30)),
        kindness=_kindness(text.lower(), len(words)),
        relevance=_relevance(question, words),
        plainness=_plainness(text, words),
        figures=1 - 0.4 ** len(set(re.findall(r"\d+(?:[.,]\d+)*", text))),
        asked=_asked(question, words),
        moral=_moral(text),
        weights=taste.weights,
    )


def true_preference(taste: Taste, prompt: Dialogue, a: Response, b: Response, band: float = 0.02) -> float:
    """Return 1 if the taste prefers `a`, 0 if `b`, and 0.5 if their totals lie within `band`; no noise.

    As `true_score`: for the final evaluation only.
    """
    difference = true_score(taste, prompt, a).total - true_score(taste, prompt, b).total
    return 0.5 if abs(difference) <= band else float(difference > 0)


@dataclass(frozen=True, slots=True)
class SimulatedAnnotator:
    """One simulated person: how they differ from the shared taste."""

    annotator: Annotator
    noise: float
    """Utility is divided by this before a choice: 0.15 is sure of itself, 0.6 often errs."""
    lapse: float
    """Probability of not reading and picking a side by coin."""
    side_bias: float
    """Added to the left's log-odds."""
    tie: float
    """Davidson's nu: at equal utilities, P(tie) = nu / (2 + nu)."""
    strictness: float
    """Added to the taste's `bad_below`, in units of total score."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Simulated annotators with the taste that they share."""

    taste: Taste
    annotators: tuple[SimulatedAnnotator, ...]


def recruit(settings: CrowdSettings, seed: int) -> Crowd:
    """Return a crowd of `settings.annotators` people who differ in noise, lapses, side bias, ties and strictness.

    noise ~ LogUniform(0.15, 0.6), lapse ~ U(0, 0.08), side bias ~ N(0, 0.25), nu ~ 0.3 exp N(0, 0.5),
    strictness ~ N(0, 0.2). Raises MannersError for a taste that does not exist.
    """
    taste = find_taste(settings.taste)
    rng = default_rng([seed, 0])
    people = tuple(
        SimulatedAnnotator(
            annotator=Annotator(f"simulated-{number:02d}", AnnotatorKind.SIMULATED),
            noise=exp(rng.uniform(log(0.15), log(0.6))),
            lapse=rng.uniform(0, 0.08),
            side_bias=rng.normal(0, 0.25),
            tie=0.3 * exp(rng.normal(0, 0.5)),
            strictness=rng.normal(0, 0.2),
        )
        for number in range(1, settings.annotators + 1)
    )
    return Crowd(taste, people)


def choice_probabilities(person: SimulatedAnnotator, left: float, right: float) -> tuple[float, float, float]:
    """Return P(left), P(right), P(tie) for two totals, lapses included (Davidson 1970, with a side bias).

    With a = left / noise + bias and b = right / noise: P(left) = e^a / Z, P(right) = e^b / Z,
    P(tie) = nu e^((a + b) / 2) / Z. A lapse picks either side with probability 1/2.
    """
    half = ((left - right) / person.noise + person.side_bias) / 2
    weights = np.array([exp(half), exp(-half), person.tie])
    p_left, p_right, p_tie = (1 - person.lapse) * weights / weights.sum()
    return float(p_left + person.lapse / 2), float(p_right + person.lapse / 2), float(p_tie)


def judge(crowd: Crowd, comparison: Comparison, annotator_index: int, rng: Generator) -> Verdict:
    """Return one simulated annotator's verdict on a comparison, as shown left and right.

    Both responses are bad when both totals lie below the annotator's limit. Strength is 1, 2 or 3 as the chosen side's
    advantage in log-odds lies below 1, below 2.5, or above; a lapse's strength is read off the same scale.
    """
    person = crowd.annotators[annotator_index]
    texts = (comparison.left, comparison.right)
    left, right = (true_score(crowd.taste, comparison.prompt, text).total for text in texts)
    seconds = 1 + sum(len(text.text.split()) for text in texts) / 4 * exp(rng.normal(0, 0.3))
    verdict = Verdict(Choice.TIE, person.annotator, seconds=round(seconds, 1))
    if max(left, right) < crowd.taste.bad_below + person.strictness:
        return replace(verdict, choice=Choice.BOTH_BAD)
    draw = rng.random()
    p_left, p_right, _ = choice_probabilities(person, left, right)
    advantage = (left - right) / person.noise + person.side_bias
    if draw < p_left:
        return replace(verdict, choice=Choice.LEFT, strength=_strength(advantage))
    if draw < p_left + p_right:
        return replace(verdict, choice=Choice.RIGHT, strength=_strength(-advantage))
    return verdict


def ask(crowd: Crowd, comparisons: Sequence[Comparison], per_comparison: int, seed: int) -> list[list[Verdict]]:
    """Return `per_comparison` verdicts, each by a different annotator, for every comparison in turn.

    Annotators are drawn at random among those with the fewest comparisons so far, so that loads differ by at most one.
    Each verdict has its own random stream from (seed, comparison's place, annotator): the order in which verdicts are
    worked out changes nothing. Raises MannersError if there are fewer annotators than verdicts to give.
    """
    size = len(crowd.annotators)
    if not 1 <= per_comparison <= size:
        raise MannersError(
            f"crowd.verdicts_per_comparison is {per_comparison}, but the crowd has {size} annotators and each sees a "
            "comparison once at most; lower it or raise crowd.annotators."
        )
    rng = default_rng([seed, 1])
    load = np.zeros(size, dtype=int)
    verdicts = []
    for place, comparison in enumerate(comparisons):
        chosen = np.lexsort((rng.random(size), load))[:per_comparison]
        load[chosen] += 1
        verdicts.append([judge(crowd, comparison, int(i), default_rng([seed, 2, place, int(i)])) for i in chosen])
    return verdicts


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().translate(_TYPOGRAPHY))


def _kindness(text: str, words: int) -> float:
    """Return 1 - 0.5^n, n = kind expressions (each kind once) + times the reader is spoken to (three at most).

    Nothing for stuffing: when both take up more than one word in three, it shrinks.
    """
    matches = list(_KIND.finditer(text))
    readers = len(_READER.findall(text))
    spoken = len({match.lastindex for match in matches}) + min(3, readers)
    spent = readers + sum(len(match.group().split()) for match in matches)
    return float(1 - 0.5**spoken) * min(1.0, words / (3 * spent) if spent else 1.0)


def _relevance(question: list[str], answer: list[str]) -> float:
    """Return the share of the question's content words taken up, 1 from one half on.

    It counts in full only with five content words of the answer's own: echoing the question is no answer.
    """
    asked = {_stem(word) for word in question if word not in _STOP}
    said = {_stem(word) for word in answer if word not in _STOP}
    taken_up = min(1.0, 2 * len(asked & said) / len(asked)) if asked else 1.0
    return taken_up * min(1.0, len(said - asked) / 5)


def _asked(question: list[str], answer: list[str]) -> float:
    """Return the share of the things named in the question that stand in the answer; 1 where it names none."""
    named = {_stem(word) for word in question if word not in _STOP and word not in _ASKING}
    return len(named & {_stem(word) for word in answer}) / len(named) if named else 1.0


def _moral(text: str) -> float:
    """Return 1 where a last sentence, behind two others or more, says what was learned."""
    sentences = re.split(r"(?<=[.!?])['\")]*\s+", text.lower())
    return float(len(sentences) > 2 and any(map(_says_what, sentences[-1].split("\n"))))


def _says_what(line: str) -> bool:
    learned = _LEARNED.search(line)
    return learned is not None and _WHAT.search(line, learned.end()) is not None


def _stem(word: str) -> str:
    for ending in ("'s", "ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def _plainness(text: str, words: list[str]) -> float:
    """Return 1 less the cost of mess: markup by the piece, strange letters and repetition by their share."""
    markup = sum(cost * len(pattern.findall(text)) for pattern, cost in _PENALTIES)
    strange = sum(not letter.isascii() and letter != "\u2026" for letter in text) / len(text)
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    repeated = 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
    return max(0.0, 1 - markup - 3 * strange - 2 * repeated)


def _strength(advantage: float) -> int:
    return 1 if advantage < 1 else 2 if advantage < 2.5 else 3
