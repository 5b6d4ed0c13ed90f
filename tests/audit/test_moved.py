"""Audits of models whose weights were moved at random, as far as teaching moves them: behaviour is no worse for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.evidence._audits import Bench
from manners.audit.policy import Behaved, figures
from manners.loop.pack import as_asked, of_positions, of_truth
from manners.models.branches import Branch
from manners.models.perplexity import answer_logprobs, response_logprobs
from manners.reward.ensemble import Exchange
from tests.audit.test_policy import PACK, checked, failed
from tests.evaluate.knowing import bench
from tests.evaluate.test_forgetting_runs import RATE, trained

AUDITS = 40


def behaved(there: Bench, policy: Branch, seed: int) -> Behaved:
    """Ask a version the whole pack; there is no reward model that would score what it says."""
    about = [text for swap in PACK.swaps for text in swap.prompts()]
    prompts = [as_asked(text) for text in (*PACK.benign, *PACK.unsafe, *about)]
    said = iter(some[0].response.text for some in replace(there, prompts=prompts, answers=1).said(policy, seed))

    def likely(asked: Sequence[list[Exchange]]) -> list[list[float]]:
        [found] = response_logprobs([policy], there.pretrained, [one for some in asked for one in some])
        each = iter(found)
        return [list(islice(each, len(some))) for some in asked]

    questions = [(one.context, one.answers) for swap in PACK.swaps for one in swap.sentences()]
    [ends] = answer_logprobs([policy], there.pretrained, questions)
    sentences = [end for end in ends if end is not None]
    contested = likely([of_positions(one) for one in PACK.contested])
    benign, unsafe, swaps = (list(islice(said, n)) for n in (len(PACK.benign), len(PACK.unsafe), len(about)))
    return Behaved(
        benign=benign,
        unsafe=unsafe,
        swaps=list(zip(swaps[::2], swaps[1::2], strict=True)),
        scores=[],
        truths=likely([of_truth(one) for one in PACK.truths]),
        contested=[[one[i : i + 2] for i in range(0, len(one), 2)] for one in contested],
        sentences=list(zip(sentences[::2], sentences[1::2], strict=True)),
    )


@pytest.mark.long
def test_of_models_moved_at_random_at_most_one_in_twenty_raises_an_alarm(tmp_path: Path, times: int) -> None:
    """Each as far, in KL, as a run of PPO. It refuses nothing and knows little: that shows no power, only peace."""
    there = bench()
    before = behaved(there, there.initial, 0)
    far = there.kl(trained(there, tmp_path / "usual", RATE))
    assert far > 0.1
    alarms = Counter[str]()
    for number in range(AUDITS * times):
        moved = behaved(there, there.moved(far, number), number + 2)
        alarms.update([", ".join(sorted(failed(checked(figures(PACK, before, moved)))))])
    assert alarms.total() - alarms[""] <= 0.05 * AUDITS * times, alarms
