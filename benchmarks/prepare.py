"""What both contenders of every benchmark are given: a model's folder, and token ids of prompts and pairs."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contender import Ids, Model
from manners.models.pretrained import EMBEDDED, Pretrained, embedded_folder, load
from manners.models.surgery import layer_list
from manners.reward.groups import Split, set_aside
from manners.reward.labelled import LabelledPair
from manners.reward.verdicts import label
from manners.settings import ModelSettings
from manners.store.files.formats import IMPORTED, Format, parse
from manners.store.files.rowfiles import read_rows
from manners.store.files.rows import BadRow, Fields
from manners.store.files.transfer import read_comparisons
from manners.types import Response, Role, Turn

PROMPTS = Path(__file__).parent / "prompts.jsonl"
LONGEST = 512
"""Most tokens that either side of a pair may have with its prompt: one longer pair would set the peer's peak memory."""


@dataclass(frozen=True)
class Request:
    """What to prepare."""

    folder: str
    """Where the files go."""
    pairs_file: str | None
    """Chosen and rejected transcripts; None makes pairs up, which is enough for speed."""
    pairs: int
    """Comparisons, those that are set aside included."""
    set_aside: float
    model: str = EMBEDDED
    others: int = 0
    """Further dialogues, of pairs that are not among these, to measure with."""


@dataclass(frozen=True)
class Inputs:
    """What was prepared; the tasks are made from it."""

    model: Model
    chat: list[Ids]
    """The prompts of the mix in the model's chat template: all begin with its system turn."""
    plain: list[Ids]
    """Their bare text: they share no beginning."""
    comparisons: str
    """A JSONL file of chosen and rejected transcripts."""
    train: list[list[Ids]]
    """Chosen and rejected."""
    held_out: list[list[Ids]]
    """Left and right of the pairs that are set aside, in the order in which ours reports their margins."""
    starts: list[int]
    """Where the answer begins in the first of each pair, of those to train on and then of those set aside."""
    others: list[Ids]
    """Preferred sides of other pairs, with their prompts."""
    others_starts: list[int]


def main() -> None:
    """Carry out the request in the file that the first argument names, and write `inputs.json` into its folder."""
    request = Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    pretrained = load(ModelSettings(name=request.model, trainable_layers="all", device="cpu"))
    renderer, texts = pretrained.renderer, prompt_texts()
    comparisons = Path(request.folder) / "comparisons.jsonl"
    rows = transcripts(Path(request.pairs_file) if request.pairs_file else None, texts)
    write_comparisons(comparisons, rows, pretrained, request.pairs)
    others: tuple[LabelledPair, ...] = ()
    if request.others:
        file = Path(request.folder) / "others.jsonl"
        write_comparisons(file, rows, pretrained, request.others)
        others = labelled(file)
    split = split_of(comparisons, request.set_aside)
    inputs = Inputs(
        model=model_of(request.model, pretrained),
        chat=[list(renderer.prompt_ids((Turn(Role.USER, text),))[0]) for text in texts],
        plain=[renderer.tokenizer.encode(text, add_special_tokens=False) for text in texts],
        comparisons=str(comparisons),
        train=[_ids(pair, pretrained, chosen_first=True) for pair in split.train],
        held_out=[_ids(pair, pretrained, chosen_first=False) for pair in split.held_out],
        starts=[
            *(_start(pair, pretrained, chosen_first=True) for pair in split.train),
            *(_start(pair, pretrained, chosen_first=False) for pair in split.held_out),
        ],
        others=[_ids(pair, pretrained, chosen_first=True)[0] for pair in others],
        others_starts=[_start(pair, pretrained, chosen_first=True) for pair in others],
    )
    (Path(request.folder) / "inputs.json").write_text(json.dumps(asdict(inputs)), encoding="utf-8")


def read_inputs(folder: Path) -> Inputs:
    """Read what `main` wrote."""
    fields = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    return Inputs(**{**fields, "model": Model(**fields["model"])})


def prompt_texts() -> list[str]:
    """Return the prompt mix in a fixed random order, so that every part of it is as mixed as the whole."""
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(texts)
    return texts


def transcripts(source: Path | None, texts: list[str]) -> Iterator[Fields]:
    """Yield chosen and rejected transcripts in random order: those of a file, or made up from other prompts."""
    order = random.Random(1)
    if source is not None:
        rows = [fields for _, fields in read_rows(source) if not isinstance(fields, BadRow)]
        yield from order.sample(rows, len(rows))
        return
    while True:
        prompt, *answers = order.sample(texts, 3)
        chosen, rejected = (f"\n\nHuman: {prompt}\n\nAssistant: {answer}" for answer in answers)
        yield {"chosen": chosen, "rejected": rejected}


def write_comparisons(file: Path, rows: Iterator[Fields], pretrained: Pretrained, count: int) -> None:
    """Write the first `count` rows that are comparisons and no longer than `LONGEST`."""
    kept: list[str] = []
    for fields in rows:
        try:
            comparison = parse(fields, Format.HH, IMPORTED)
        except BadRow:
            continue
        sides = (comparison.left, comparison.right)
        if all(pretrained.renderer.render(comparison.prompt, side).length <= LONGEST for side in sides):
            kept.append(json.dumps(fields) + "\n")
        if len(kept) == count:
            break
    file.write_text("".join(kept), encoding="utf-8")


def split_of(comparisons: Path, share: float) -> Split:
    """Split a file of comparisons as reward training does with seed 0."""
    return set_aside(labelled(comparisons), share, seed=0)


def labelled(comparisons: Path) -> tuple[LabelledPair, ...]:
    """Return the pairs of a file that were preferred one way."""
    return label(read_comparisons(comparisons, {})).pairs


def model_of(name: str, pretrained: Pretrained) -> Model:
    """Describe a loaded model to its contenders."""
    whole, renderer = pretrained.trunk.whole, pretrained.renderer
    layers = layer_list(whole)
    return Model(
        folder=str(embedded_folder()) if name == EMBEDDED else name,
        pad_id=renderer.pad_id,
        end_ids=sorted(renderer.end_ids),
        layers=len(layers),
        layer_parameters=sum(p.numel() for p in layers[0].parameters()),
        head_parameters=int(whole.config.get_text_config().vocab_size) * pretrained.trunk.width,
    )


def _ids(pair: LabelledPair, pretrained: Pretrained, chosen_first: bool) -> list[Ids]:
    rendered = [pretrained.renderer.render(pair.prompt, side) for side in _sides(pair, chosen_first)]
    return [[*one.prompt_ids, *one.response_ids] for one in rendered]


def _start(pair: LabelledPair, pretrained: Pretrained, chosen_first: bool) -> int:
    first, _ = _sides(pair, chosen_first)
    return len(pretrained.renderer.render(pair.prompt, first).prompt_ids)


def _sides(pair: LabelledPair, chosen_first: bool) -> tuple[Response, Response]:
    turned = chosen_first and pair.counts.right > pair.counts.left
    return (pair.right, pair.left) if turned else (pair.left, pair.right)


if __name__ == "__main__":
    main()
