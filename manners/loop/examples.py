"""Where examples of answers come from: a file of the user's, or what people said in the store."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manners.errors import MannersError
from manners.loop.session import Session
from manners.reward.groups import divided
from manners.reward.labelled import LabelledPair
from manners.reward.verdicts import label
from manners.settings import RewardSettings, SFTSettings
from manners.sft.examples import Example
from manners.store.files.columns import check_mapping, renamed, speaks_for
from manners.store.files.exchanges import EXCHANGE_FIELDS, messages_in, parse_exchange, parse_messages
from manners.store.files.fields import with_system
from manners.store.files.messages import messages, said
from manners.store.files.rowfiles import places, read_rows
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.files.seen import Seen, names, unused
from manners.types import Choice, Comparison, Dialogue, FinishReason, Role, Sampling, Turn

STORE = "store"
PREFERRED = (
    "Of the answers to a prompt the one that is preferred most: with the most weight of verdicts for it less that of"
    " those against it, if that is above 0; a verdict for the other answer is one against it, and so is `both_bad`; the"
    " earlier one where two are level. None that the length limit cut off, and none that reward training sets aside."
)
"""The rule by which the store gives examples."""
_TALKS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat")
_FIELDS = (*EXCHANGE_FIELDS, "system")


@dataclass(frozen=True)
class Found:
    """Examples, and what was passed over on the way."""

    examples: list[Example]
    source: str
    passed: Counter[str]
    """Rows, answers or prompts that give no example, by reason."""
    note: str = ""
    """How the columns of a file were read, where that was a guess."""
    unused: tuple[str, ...] = ()
    """What is in a file, columns and fields of messages, and was not read."""


def gather(session: Session, comparisons: Sequence[Comparison]) -> Found:
    """Return the examples of the file that `sft.examples` names, or else of comparisons.

    Raises MannersError where there are none, with the reasons.
    """
    chosen = session.settings.sft
    if chosen.examples is not None:
        return of_file(Path(chosen.examples).expanduser(), chosen.columns, chosen.skip_bad)
    return of_store(comparisons, session.settings.reward, session.settings.seed)


def in_a_file(chosen: SFTSettings) -> bool:
    """Return whether a file has the examples; raises MannersError where none is named, but how to read it."""
    if chosen.examples is None and (chosen.columns or chosen.skip_bad):
        raise MannersError("sft.columns and sft.skip_bad say how to read the file of sft.examples: name one")
    return chosen.examples is not None


def of_store(comparisons: Sequence[Comparison], reward: RewardSettings, seed: int) -> Found:
    """Take from the store what annotators preferred, by `PREFERRED`, of those verdicts that reward training counts.

    Of the prompts that it sets aside nothing: a model that has learned the preferred answers to these is a base on
    which neither a reward model nor DPO is measured on anything unseen.
    """
    labelled = label(comparisons, reward.annotators, reward.user_share, reward.account_share)
    aside = _set_aside(labelled.pairs, reward, seed)
    examples, passed = preferred(pair for pair in labelled.pairs if pair.prompt not in aside)
    passed.update({"a prompt that reward training sets aside": len(aside)} if aside else {})
    passed.update({f"a comparison left out: {reason}": n for reason, n in labelled.left_out.items()})
    if not examples:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in passed.items())
        raise MannersError(
            f"the store has no answer to learn from ({reasons}): have more compared, with a higher"
            " sample.max_new_tokens where answers are cut off, or name a file of dialogues with sft.examples"
        )
    return Found(examples, STORE, passed)


def _set_aside(pairs: Sequence[LabelledPair], reward: RewardSettings, seed: int) -> set[Dialogue]:
    """Return the prompts that reward training sets aside; none where it would refuse these pairs."""
    try:
        split = divided(pairs, reward, seed)
        return {pair.prompt for pair in (*split.held_out, *split.idle)}
    except MannersError:
        return set()


def preferred(pairs: Iterable[LabelledPair]) -> tuple[list[Example], Counter[str]]:
    """Return the answer to each prompt that is preferred most (`PREFERRED`), and what gives no example, by reason."""
    cut = set[tuple[Dialogue, str]]()
    balance: dict[Dialogue, dict[str, float]] = {}
    drawn: dict[tuple[Dialogue, str], Sampling | None] = {}
    for pair in pairs:
        weights, neither = pair.weights, [v.choice for v in pair.voices if v.choice in (Choice.TIE, Choice.BOTH_BAD)]
        against_both = weights.tie * neither.count(Choice.BOTH_BAD) / len(neither) if neither else 0.0
        for side, won, lost in ((pair.left, weights.left, weights.right), (pair.right, weights.right, weights.left)):
            if side.finish_reason is FinishReason.LENGTH:
                cut.add((pair.prompt, side.text))
                continue
            answers = balance.setdefault(pair.prompt, {})
            answers[side.text] = answers.get(side.text, 0.0) + won - lost - against_both
            drawn[pair.prompt, side.text] = drawn.get((pair.prompt, side.text)) or side.sampling
    examples = list[Example]()
    passed = Counter[str]()
    for prompt, answers in balance.items():
        text = max(answers, key=answers.__getitem__)
        if answers[text] > 0:
            learned = (*prompt, Turn(Role.ASSISTANT, text))
            examples.append(Example(learned, every=False, drawn=drawn[prompt, text]))
        else:
            passed["a prompt of whose answers none is preferred"] += 1
    passed.update({"an answer that the length limit cut off": len(cut)} if cut else {})
    return examples, passed


def of_file(path: Path, columns: Mapping[str, Any], skip_bad: bool) -> Found:
    """Read dialogues (`messages`: every assistant turn is an example) or prompts with responses (the response is).

    Raises MannersError naming the line of the first row that cannot be read, unless such are left out.
    """
    if not path.exists():
        raise MannersError(f"sft.examples is {path}, but there is no such file; check the path")
    mapping = {column: str(field) for column, field in columns.items()}
    check_mapping(path, mapping, _FIELDS)
    examples = list[Example]()
    passed = Counter[str]()
    note = first = ""
    there, used = set[str](), set[str]()
    for line, fields in read_rows(path):
        try:
            if isinstance(fields, BadRow):
                raise fields
            ours, guessed = _under_our_names(renamed(fields, mapping))
            note = note or guessed
            there.update(names(ours))
            examples.append(_example(Seen(ours, used)))
        except BadRow as bad:
            told = f"{places(path, [line])}" + (f", field {bad.field}" if bad.field else "") + f": {bad.remark}"
            if not skip_bad:
                told = told.replace("--map ", "sft.columns: ")
                raise MannersError(f"{told}; correct it, or set sft.skip_bad to leave such rows out") from bad
            first = first or told
            passed[str(bad.reason)] += 1
    if not examples:
        why = f"none of its {passed.total()} rows can be read: {first}" if passed else "it is empty"
        raise MannersError(f"{path} holds no examples ({why})")
    return Found(examples, str(path), passed, note, unused(there, used))


def tell(found: Found) -> None:
    """Say on stderr what the examples are, and what is not among them."""
    rule = "" if found.source != STORE else f" ({PREFERRED})"
    print(f"{len(found.examples):,} examples from {found.source}{rule}", file=sys.stderr)
    if found.note:
        print(found.note, file=sys.stderr)
    if found.unused:
        print(f"not read: {', '.join(found.unused)}", file=sys.stderr)
    for reason, count in found.passed.items():
        print(f"{count:,} passed over: {reason}", file=sys.stderr)


def _example(fields: Fields) -> Example:
    if fields.get("finish_reason") == FinishReason.LENGTH:
        raise BadRow(Reason.VALUE, "finish_reason", "says that the response was cut off, which would teach to stop")
    if fields.get("response") is None and (name := messages_in(fields)):
        return _taught(with_system(parse_messages(fields, name), fields), messages(fields[name], name) or [], name)
    prompt, response = parse_exchange(fields, "file")
    return Example((*prompt, Turn(Role.ASSISTANT, response.text)), every=False)


def _taught(dialogue: Dialogue, written: Sequence[Any], name: str) -> Example:
    """Return a dialogue up to the last answer that is to be learned: one of weight 0 is not, as OpenAI's files say it.

    No message of an assistant is passed over on the way from messages to turns, so that they are in one order.
    """
    spoken = [message for message in written if (one := said(message, name)) and one[0] is Role.ASSISTANT]
    weights = [1 if message.get("weight") is None else message["weight"] for message in spoken]
    if strange := [weight for weight in weights if weight not in (0, 1)]:
        raise BadRow(Reason.VALUE, name, f"has a message of weight {strange[0]!r}, which is neither 0 nor 1")
    if all(weights):
        return Example(dialogue)
    if not any(weights):
        raise BadRow(Reason.VALUE, name, "has no message to learn: the weight of all of an assistant's is 0")
    places = [place for place, turn in enumerate(dialogue) if turn.role is Role.ASSISTANT]
    ignored = frozenset(place for place, weight in zip(places, weights, strict=True) if not weight)
    last = max(place for place in places if place not in ignored)
    return Example(dialogue[: last + 1], ignored=ignored)


def _under_our_names(fields: Fields) -> tuple[Fields, str]:
    """Return a row with the columns that others use read as ours, and a sentence where that was done.

    `instruction` and `input`, as Alpaca's files have them, are one prompt.
    """
    talk = next((name for name in _TALKS if fields.get(name) is not None), None)
    if talk is not None and fields.get("response") is None:
        rest = {name: value for name, value in fields.items() if name not in (talk, "prompt")}
        return {**rest, "messages": fields[talk]}, "" if talk == "messages" else f"column `{talk}` is read as messages"
    wanted = [field for field in ("prompt", "response") if fields.get(field) is None]
    if not wanted:
        return fields, ""
    if "prompt" in wanted and fields.get("instruction") is not None and isinstance(fields.get("input"), str):
        parts = [str(fields["instruction"]), fields["input"]]
        rest = {name: value for name, value in fields.items() if name not in ("instruction", "input")}
        fields = {**rest, "prompt": "\n\n".join(part for part in parts if part.strip())}
        guessed = ["`instruction` and `input` as prompt"]
        wanted.remove("prompt")
    else:
        guessed = []
    free = [name for name in fields if name not in _FIELDS]
    for field in wanted:
        speaking = [name for name in free if speaks_for(field, name) and fields.get(name) is not None]
        if len(speaking) == 1:
            fields = renamed(fields, {speaking[0]: field})
            guessed.append(f"`{speaking[0]}` as {field}")
    return fields, f"columns are read so: {', '.join(guessed)}" if guessed else ""
