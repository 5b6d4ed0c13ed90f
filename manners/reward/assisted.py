"""What an admitted judge adds to people's verdicts: comparisons that nobody else has judged, to train on alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from manners.feedback.admission import judged_by_others
from manners.reward.drawing import Pool
from manners.reward.ensemble import Exchange
from manners.reward.groups import Split
from manners.reward.labelled import Counts, Labelled, LabelledPair, LeftOut
from manners.reward.pairs import can_say, render_compared
from manners.reward.verdicts import labelled_pair, pooled, sort_out
from manners.text import Rendered, Renderer
from manners.types import VOLUNTEERED, Annotator, AnnotatorKind, Comparison, opening


@dataclass(frozen=True)
class Assisted:
    """Pairs beside people's that are trained on: what a judge has judged, or what was made (`reward.augment`)."""

    pairs: tuple[LabelledPair, ...] = ()
    """Their counts are 0: nothing is measured on them."""
    weight: float = 0.0
    """Share of the whole weight that they have."""
    rendered: dict[Exchange, Rendered] = field(default_factory=dict, repr=False)
    """What the model reads of them, and of all else that is trained on behind the same prompts: in place of before."""

    def left_out(self, labelled: Labelled) -> dict[LeftOut, int]:
        """Return what is not learned from, less what the judge has judged."""
        rest = labelled.left_out.get(LeftOut.JUDGE, 0) - len(self.pairs)
        others = {reason: n for reason, n in labelled.left_out.items() if reason is not LeftOut.JUDGE}
        return others | ({LeftOut.JUDGE: rest} if rest > 0 else {})


def assisted(
    renderer: Renderer,
    comparisons: Iterable[Comparison],
    labelled: Labelled,
    split: Split,
    judges: AbstractSet[Annotator],
    human_share: float,
    shut_out: AbstractSet[int] = frozenset(),
) -> Assisted:
    """Return the pairs that judges add to those that people have judged.

    None that people have judged, none that shares its opening with one set aside, none of those that users came to by
    themselves, and none that no policy can say (`pairs.can_say`). With H the weight of people's verdicts that are
    trained on and A that of the judges', the latter are multiplied by min(1, H (1 - s) / (s A)), so that people keep
    the share s at least.
    """
    if not judges:
        return Assisted()
    aside = {opening(pair.prompt) for pair in split.held_out}
    known = {pair.comparison_id for pair in (*labelled.pairs, *split.train, *split.held_out)}
    asked = [
        replace(one, verdicts=tuple(v for v in one.verdicts if v.annotator in judges))
        for one in pooled(comparisons)
        if one.asked_how not in VOLUNTEERED
        and one.id not in known
        and opening(one.prompt) not in aside
        and not judged_by_others(one)
    ]
    usable = sort_out(asked, AnnotatorKind.AI).usable
    objections = renderer.template.objections(one.prompt for one, _ in usable)
    usable = tuple((one, said) for one, said in usable if not objections[one.prompt])
    rendered = _read_together(renderer, [one for one, _ in usable], split.train)
    pairs = [
        labelled_pair(one, said, {}, opening(one.prompt), Pool())
        for one, said in usable
        if rendered[one.prompt, one.left].response_ids != rendered[one.prompt, one.right].response_ids
    ]
    pairs = [pair for pair in pairs if can_say(pair, rendered, shut_out)]
    human = sum(sum(pair.weights) for pair in split.train)
    judged = sum(sum(pair.weights) for pair in pairs)
    if not judged or not human:
        return Assisted()
    factor = min(1.0, human * (1 - human_share) / (human_share * judged))
    weighed = tuple(pair.unmeasured(Counts(*(factor * w for w in pair.weights))) for pair in pairs if factor)
    return Assisted(weighed, factor * judged / (human + factor * judged), rendered) if weighed else Assisted()


def _read_together(
    renderer: Renderer, judged: Sequence[Comparison], people: Iterable[LabelledPair]
) -> dict[Exchange, Rendered]:
    """Render what judges compared, and anew what people compared on the same prompts: all on a prompt see the same."""
    prompts = {one.prompt for one in judged}
    sides = [(one.prompt, side) for one in judged for side in (one.left, one.right)]
    sides += [(pair.prompt, side) for pair in people if pair.prompt in prompts for side in (pair.left, pair.right)]
    return render_compared(renderer, sides)
