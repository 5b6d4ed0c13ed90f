"""Real people's sets, read from files in their forms; what is kept of the trunk; and the whole experiment, quickly."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import on_people, people_tables
from benchmarks.kept_states import KeptStates
from benchmarks.on_people import QUICK, Options, World, main, measures
from benchmarks.people import CROWDS, by_opening, dense, looks_better, rows, transcripts
from manners.models.states import StateStore
from manners.reward.baselines import characters, longer_wins
from manners.reward.labelled import LabelledPair
from manners.reward.train import train
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.types import Choice
from tests.reward.planted import comparisons
from tests.worlds import tiny_pretrained

WORDS = ["bread", "yeast", "oven", "train", "sea", "noon", "- weather", "**long**", "fine", "bake"]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up sets in the forms of the published ones: 60 pairs each, by six people; whoever says thanks is liked."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(3, 12)))

    def votes() -> list[tuple[int, str]]:
        return [(who, rng.choices(["a", "b", "tie"], [8, 1, 1])[0]) for who in rng.sample(range(6), 3)]

    def answers(name: str, **more: Any) -> list[dict[str, Any]]:
        return [
            {
                "prompt": f"{name} {number}?",
                "model_a": "x",
                "model_b": "y",
                "response_a": f"{text()} thank you" if number else " ",
                "response_b": text(),
                "votes": [{"annotator": who, "label": said, **more} for who, said in votes()],
            }
            for number in range(60)
        ]

    write(folder / "llmfao_crowd_pairs" / "pairs.jsonl.gz", answers("llmfao"))
    write(folder / "pandalm_testset" / "pairs.jsonl", answers("pandalm"))
    write(folder / "open_instruct_human_eval" / "pairs.jsonl.gz", answers("tulu", strength=1, shown_order="ab"))
    ukp = folder / "ukpconvarg1_crowd_pairs"
    arguments = [
        {"id": f"s{n % 12}#{n}", "debate": f"debate {n % 12}", "stance": "Yes", "text": text()} for n in range(48)
    ]
    pairs = [
        {"debate_side": one["id"][:2], "a": one["id"], "b": other["id"], "votes": votes()}
        for n, one in enumerate(arguments)
        for other in arguments[n + 12 :: 12]
    ]
    write(ukp / "arguments.jsonl.gz", arguments)
    write(ukp / "pairs.jsonl.gz", pairs)
    talks = [f"\n\nHuman: question {number}?\n\nAssistant: " for number in range(80)]
    write(
        folder / "hh_rlhf_harmless" / "pairs.jsonl.gz",
        [{"chosen": f"{talk}{text()} thank you", "rejected": f"{talk}{text()}"} for talk in talks],
    )
    return folder


def test_each_set_is_read_with_who_said_what(data: Path) -> None:
    for name, read in CROWDS.items():
        found = read(data)
        assert len(found) == (72 if name.startswith("ukp") else 59), "an empty answer is left out"
        assert len({v.annotator for one in found for v in one.verdicts}) == 6
        assert all(len(one.verdicts) == 3 for one in found) and len({one.id for one in found}) == len(found)
    assert [one.verdicts[0].choice for one in transcripts(data)].count(Choice.LEFT) not in (0, 80)
    first = CROWDS["ukpconvarg1_crowd_pairs"](data)[0]
    assert first.prompt[0].text == "debate 0: Yes. Argue for this."


def test_the_published_sets_are_read_whole(shared_data: Path) -> None:
    found = {name: read(shared_data) for name, read in CROWDS.items()}
    votes = {name: sum(len(one.verdicts) for one in some) for name, some in found.items()}
    # As each folder's SOURCE.md says, empty answers left out: 289 pairs and 54.
    assert {name: len(some) for name, some in found.items()} == {
        "llmfao_crowd_pairs": 2139 - 289,
        "pandalm_testset": 999 - 54,
        "open_instruct_human_eval": 996,
        "ukpconvarg1_crowd_pairs": 16927,
    }
    assert votes["ukpconvarg1_crowd_pairs"] == 84445 and votes["open_instruct_human_eval"] == 1150


def test_what_is_drawn_is_what_the_busiest_have_judged(data: Path) -> None:
    some = comparisons(100, agreement=0.9)
    rare = [replace(one, verdicts=()) if one.id and one.id % 2 else one for one in some]
    assert all(one.verdicts for one in dense(rare, 50)) and len(dense(rare, 50)) == 50
    assert dense(rare, 20, seed=1) == dense(rare, 20, seed=1) != dense(rare, 20, seed=2)
    order = by_opening(label(some).pairs)
    assert order != list(label(some).pairs) and {p.comparison_id for p in order} == {c.id for c in some}


def test_what_looks_better_is_longer_and_more_formatted_and_was_not_chosen() -> None:
    [pair] = label(comparisons(2, agreement=1.0)).pairs[:1]
    liked, other = (pair.left, pair.right) if pair.counts.left else (pair.right, pair.left)
    for text, looks in (
        (f"- {liked.text}\n- and more", True),
        (f"{liked.text} and more", False),
        ("- less", False),
    ):
        changed = replace(other, text=text)
        left, right = (liked, changed) if pair.counts.left else (changed, liked)
        shown = replace(pair, left=left, right=right)
        assert looks_better(shown) is looks, text
        assert not looks_better(replace(shown, counts=pair.counts._replace(left=1.0, right=1.0)))


def test_kept_states_are_the_trunks_and_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = tiny_pretrained()
    exchanges = [(one.prompt, side) for one in comparisons(6, agreement=1.0) for side in (one.left, one.right)]
    rendered = [world.renderer.render(*exchange) for exchange in exchanges]
    kept = KeptStates(tmp_path)
    kept.view(world.trunk, rendered[:5], world.renderer.pad_id)
    both = kept.view(world.trunk, rendered[3:], world.renderer.pad_id)
    whole = StateStore(world.trunk, rendered, world.renderer.pad_id, tmp_path / "whole")
    states, batch = both.batch([4, 0, 1])
    expected, same = whole.batch([7, 3, 4])
    assert batch.spans == same.spans and torch.equal(batch.ids, same.ids)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    assert [len(store.rendered) for store in kept.stores] == [5, 7]
    monkeypatch.setattr(type(world.trunk), "states", None)  # nothing is read a second time
    for bucket, _, read in kept.batches(world, rendered):
        assert len(bucket) == len(read.spans)


def test_training_on_kept_states_is_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RewardSettings(members=1, epochs=1, batch=8, learning_rate=0.01, set_aside=0.3, curve=False)
    plain = train(settings, 0, tiny_pretrained(), comparisons(30, agreement=0.95))
    kept = KeptStates(tmp_path)
    monkeypatch.setattr("manners.reward.pairs.StateStore", kept.view)
    again = train(settings, 0, tiny_pretrained(), comparisons(30, agreement=0.95))
    torch.testing.assert_close(again.margins, plain.margins, atol=1e-4, rtol=1e-4)
    assert len(kept.stores) == 2


def test_measures_by_a_model_that_likes_length(data: Path, tmp_path: Path) -> None:
    world = World(Options(data=data, quick=True), tmp_path)
    learned, outside, looks = world.parted
    assert len(learned) == QUICK.train and len(outside) == QUICK.outside and 0 < len(looks) <= QUICK.looks
    groups = [{pair.group for pair in some} for some in (label(learned).pairs, outside, looks)]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    lengths = torch.tensor([float(len(response.text)) for _, response in world.exchanges]).log2().double().numpy()
    found = measures(world, lengths)
    assert not found["looks better"][0].any(), "length is all that it sees"
    assert found["length"][0] == pytest.approx(1.0), "one unit for each doubling"
    assert {len(values) == len(of) for values, of in found.values()} == {True}
    longer = [len(p.left.text) > len(p.right.text) for p in outside]
    right = [(p.counts.left > 0) == is_longer for p, is_longer in zip(outside, longer, strict=True)]
    assert found["outside"][0].tolist() == right


def planted(data: Path) -> dict[int, LabelledPair]:
    return {pair.comparison_id or 0: pair for pair in label(CROWDS["pandalm_testset"](data)).pairs}


def test_a_seed_that_is_refused_is_left_out_of_both_sides_and_counted(data: Path) -> None:
    """Beside an accuracy stand the trivial rule and the ceiling of the same pairs."""
    known = planted(data)
    held = sorted(known)[:30]

    def run(toward: float) -> dict[str, Any]:
        margins = [toward * (1 if known[number].counts.left >= known[number].counts.right else -1) for number in held]
        return {"held": held, "margins": margins, "gain": [0.1, -0.1, 0.3], "camps": 1}

    runs = {("set", "plain"): [run(-1.0), run(1.0)], ("set", "soft"): [{"refused": "too few"}, run(1.0)]}
    head, _, plain, soft = people_tables.crowds_table(runs, {"set": known}).splitlines()
    assert "refused on 1 of 2 seeds: too few" in soft and "+0.0 [" in soft, "the seed of the one is that of the other"
    pairs = [known[number] for number in held] * 2
    rule = longer_wins(characters(pairs), pairs, 0)
    cells = [cell.strip() for cell in plain.split("|")]
    assert cells[4].startswith(f"{rule.estimate:.1%} [") and " to " in cells[5] and len(cells) == head.count("|") + 1
    assert soft.count("|") == head.count("|")
    none = people_tables.crowds_table({("set", "plain"): [{"refused": "why"}] * 2}, {"set": known}).splitlines()[-1]
    assert "refused on 2 of 2 seeds: why" in none and none.count("|") == head.count("|")


def test_what_ships_is_held_to_two_points_paired() -> None:
    groups = [str(n) for n in range(200)]
    right = np.array([1.0, 0.0] * 100)

    def model(outside: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        return {name: (outside if name == "outside" else np.ones(200), groups) for name in people_tables.MEASURES}

    worse, unsure = right.copy(), right.copy()
    worse[:40] = 0.0  # ten points
    unsure[:20], unsure[20:26] = 1 - right[:20], 0.0  # a point and a half, by as many each way
    plain = [model(right)] * 3
    said = people_tables.hard_table(
        {"one member": plain, "mean of three": plain, "worse": [model(worse)] * 3, "unsure": [model(unsure)] * 3}
    )
    assert "| *cases (conversations)* | 200 (200) | 200 (200) |" in said
    assert "- mean of three, which ships: it is not below one member by 2 points" in said
    assert "(by seed +0.0, +0.0, +0.0)" in said and "- worse: **it is** below" in said and "-10.0, -10.0" in said
    assert "- unsure: it cannot be told whether it is below" in said
    assert "100.0% [100.0%, 100.0%]" not in said, "of 200 cases without a fault not that there is none"


def test_a_quick_run_leaves_what_a_whole_one_has_found(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(name: str, folder: Path, *_: Path) -> None:
        asked.append(folder)
        raise Stop

    asked: list[Path] = []
    monkeypatch.setattr(on_people, "Results", stop)
    for quick in (True, False):
        with pytest.raises(Stop):
            main(Options(data=data, quick=quick))
    assert asked[0] != asked[1] == on_people.RESULTS


@pytest.mark.long
def test_the_whole_of_it_quickly(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("on-people", "on-people-crowds", "on-people-hard"))
    )
    options = Options(data=data, seeds=(0, 1), results=tmp_path / "results", page=page, quick=True)
    main(options)
    once = page.read_text()
    for name in CROWDS:
        assert once.count(f"| {name} |") == 4, "people, and three ways to train"
    assert all(f"| {name} |" in once for name in ("one member", "mean of three", "lowest of three"))
    assert "`reward.augment` = 0.3" in once and "cores of" in once and "refused" not in once
    # What is done is not done again.
    monkeypatch.setattr(on_people, "train", None)
    main(options)
    assert page.read_text() == once
    # Other files are other parts.
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    write(changed / "pandalm_testset" / "pairs.jsonl", rows(data / "llmfao_crowd_pairs" / "pairs.jsonl.gz"))
    with pytest.raises(TypeError):  # there is nothing to train with
        main(replace(options, data=changed))
