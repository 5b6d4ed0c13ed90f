"""A store that something has written into: whatever is asked of it, the answer is an answer or one sentence."""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from manners.errors import MannersError
from manners.store import Store, VersionRecord
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)

ANN = Annotator("Ann", AnnotatorKind.HUMAN)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "store.db"
    with closing(Store.create(path)) as store:
        said = Verdict(Choice.LEFT, ANN, reasons=("kind", "short"), comment="well")
        store.add_comparisons(
            Comparison(
                (Turn(Role.USER, f"Question {n}?"),), Response("yes", "a"), Response("no", "b"), how, None, (said,)
            )
            for n, how in enumerate([AskedHow.RANDOM] * 30)
        )
        store.add_version(VersionRecord("reward-1", VersionKind.REWARD, "models/reward-1", metrics={"x": 1}))
    return path


@pytest.mark.parametrize("seed", range(20))
def test_noise_in_a_store_is_an_answer_or_one_sentence(sound: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = Path(shutil.copy(sound, tmp_path))
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([5, 40, 200])):
        content[rng.randrange(100, len(content))] = rng.randrange(256)
    path.write_bytes(content)
    asked = ("comparisons", "prompts", "versions", "rounds", "counts", "watermark", "kept_openings", "mark")
    for name in asked:
        try:
            with closing(Store.open(path)) as store:
                getattr(store, name)()
        except MannersError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_what_is_wrong_in_a_program_is_no_damage(sound: Path) -> None:
    with closing(Store.open(sound)) as store, pytest.raises(ValueError, match="mine"), store.read():
        raise ValueError("mine")
