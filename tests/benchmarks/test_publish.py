"""Results: rounds summed up, written, read back, and shown on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import accuracy, growth, learning, publish, run
from benchmarks.contender import GenerateTask, Measurement, Model, Part, SFTTask
from benchmarks.processes import Contender
from benchmarks.publish import Row
from manners.reward.labelled import Counts, LabelledPair
from manners.types import Response, Role, Turn

PEER = GenerateTask(Model("", 0, [], 1, 1, 1), [], 1, 1)


def measured(seconds: float, memory_bytes: int) -> Measurement:
    parts = {"draw": Part(seconds / 4, 1e9), "train": Part(seconds * 3 / 4, 6e9)}
    return Measurement(12, parts, memory_bytes=memory_bytes)


@pytest.fixture
def row() -> Row:
    ours = [measured(4, 100), measured(6, 100), measured(2, 130)]
    peer = [measured(12, 400), measured(12, 400), measured(8, 300)]
    return run.row("ppo_k6", "episodes/s", "a peer", ours, peer, peak=2e9)


def test_ratios_are_taken_within_a_round(row: Row) -> None:
    assert (row.ratio, row.spread) == (3.0, (2.0, 4.0))
    assert (row.ours, row.peer, row.rounds) == (3.0, 1.0, 3)
    assert (row.memory_ratio, row.peak_gflops) == (0.25, 2.0)
    assert row.share_of_peak == pytest.approx({"draw": 0.5, "train": 1.0})


def test_only_what_is_asked_for_runs_and_a_wrong_name_is_refused() -> None:
    groups = [run.Group("ppo", "", "", "", PEER, {"ppo_k6": PEER, "ppo_all": PEER})]
    groups += [run.Group("generate", "", "", "", PEER, {"generate_1": PEER})]
    assert run.chosen(groups, ()) == groups
    assert [list(group.ours) for group in run.chosen(groups, ["ppo_all"])] == [["ppo_all"]]
    with pytest.raises(SystemExit, match=r"no benchmark ppo \(there are: ppo_k6, ppo_all, generate_1\)"):
        run.chosen(groups, ["ppo"])


def test_new_rows_take_the_place_of_old_ones_and_the_page_shows_all(row: Row, tmp_path: Path) -> None:
    results, page, picture = tmp_path / "results.json", tmp_path / "page.md", tmp_path / "picture.png"
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\n<!-- losses -->\n<!-- /losses -->\nafter\n")
    other = replace(row, name="reward_1", ratio=3.5)
    publish.publish([row, other], results, page, picture)
    publish.publish([replace(row, ratio=2.5), replace(row, processor="another", ratio=2.25)], results, page, picture)
    kept = {(r.name, r.processor): r.ratio for r in publish.read(results)}
    here = publish.processor()
    assert kept == {("ppo_k6", here): 2.5, ("reward_1", here): 3.5, ("ppo_k6", "another"): 2.25}
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"| `ppo_k6` | **2.50** [2.00, 4.00] | {here} | 3 | 1 |" in text
    assert "| `ppo_k6` | **2.25** [2.00, 4.00] | another | 3 | 1 |" in text
    assert picture.stat().st_size > 1000


def test_what_a_round_ended_with_stands_beside_the_peers() -> None:
    ours, peer = ([replace(measured(4, 100), loss=loss) for loss in losses] for losses in ((2.5, 2.25), (2.0, 3.0)))
    found = run.row("sft_all", "tokens/s", "a peer", ours, peer, peak=2e9)
    assert found.losses == [(2.5, 2.0), (2.25, 3.0)]
    assert publish.losses([replace(found, before=4.0)]).splitlines()[2:] == [
        "| `sft_all` | 4.0000 | 2.5000 / 2.0000, 2.2500 / 3.0000 |"
    ]


def test_each_round_of_what_is_drawn_by_a_seed_has_its_own() -> None:
    task = SFTTask(Model("", 0, [], 1, 1, 1), [], [], [], [], 8, 512, "all")
    assert [run.seeded(Contender("", task), turn).task for turn in (0, 2)] == [task, replace(task, seed=2)]
    assert run.seeded(Contender("", PEER), 2).task == PEER


def test_a_page_without_the_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(SystemExit, match="0 places for `results`"):
        publish.replace_between(page, "results", "table")


def test_the_page_shows_the_results_that_are_kept() -> None:
    shown = publish.table(publish.read()) if publish.RESULTS.is_file() else "Not measured yet"
    page = publish.PAGE.read_text(encoding="utf-8")
    assert shown in page and publish.losses(publish.read()) in page


def test_the_histogram_counts_every_prompt() -> None:
    assert publish.histogram([1, 15, 16, 40]).splitlines()[2:] == [
        "| 0 to 15 | 2 | ██ |",
        "| 16 to 31 | 1 | █ |",
        "| 32 to 47 | 1 | █ |",
    ]


def test_growth_is_one_line_a_point() -> None:
    point = growth.Point("batch", "16", "manners", 1.25, 1_500_000_000)
    assert growth.table([point]).splitlines()[-1] == "| batch | 16 | manners | 1.25 | 1.50 GB |"


def test_the_time_to_reach_a_reward_is_that_of_the_smoothed_curve() -> None:
    ours = [(1.0, 0.0), (2.0, 0.0), (3.0, 3.0), (4.0, 3.0), (5.0, 3.0)]
    peer = [(10.0, -3.0), (20.0, 0.0), (30.0, 3.0), (40.0, 3.0)]
    assert learning.smoothed(ours) == [(3.0, 1.0), (4.0, 2.0), (5.0, 3.0)]
    found = learning.reached(0, ours, peer)
    assert [row.score for row in found] == [0.5, 1.0, 1.5, 2.0], "the best that both reach is the peer's 2"
    assert [(row.ours, row.peer) for row in found] == [(3.0, 40.0), (3.0, 40.0), (4.0, 40.0), (4.0, 40.0)]


def test_nothing_is_reached_where_neither_learns() -> None:
    curve = [(1.0, 0.0), (2.0, -1.0), (3.0, 0.0)]
    assert learning.reached(0, curve, curve) == []


def test_accuracy_is_that_of_the_signs_and_the_gain_is_paired() -> None:
    held_out = [pair(f"question {i}", left=i % 2 == 0) for i in range(20)]
    right = [1.0 if i % 2 == 0 else -1.0 for i in range(20)]
    wrong = [-margin if i < 5 else margin for i, margin in enumerate(right)]
    found = {"ours": Measurement(1, {}, right), accuracy.PEER: Measurement(1, {}, wrong)}
    ours, peer, ruler = accuracy.compared(found, held_out, trained_on=100)
    assert (ours.accuracy.estimate, peer.accuracy.estimate) == (1.0, 0.75)
    assert ours.gain is not None and ours.gain.estimate == pytest.approx(0.25) and ours.gain.low > 0
    assert peer.gain is None and ruler.accuracy.estimate == 0.5
    assert "+25.0 [" in accuracy.table([ours, peer, ruler])


def pair(question: str, left: bool) -> LabelledPair:
    counts = Counts(float(left), float(not left), 0.0)
    responses = Response("same length a", "x"), Response("same length b", "x")
    return LabelledPair(None, (Turn(Role.USER, question),), *responses, counts, counts, 0, question)
