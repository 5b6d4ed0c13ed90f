"""What a row means: one comparison with at most one verdict, in each of three formats, parsed and rendered."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any

from manners.store.files.answers import chosen_or_equal
from manners.store.files.exchanges import MESSAGE_FIELDS, PROMPT_FIELDS, answer_to
from manners.store.files.fields import (
    LARGEST,
    checked_prompt,
    parse_dialogue,
    parse_flag,
    parse_list,
    parse_member,
    parse_moment,
    parse_name,
    parse_number,
    parse_prompt,
    parse_sampling,
    parse_text,
    parse_word,
    prompt_text,
    required,
    was_asked,
    with_system,
)
from manners.store.files.mapping import Words
from manners.store.files.messages import messages, transcript
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.records import digest, to_messages
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    DrawnHow,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
)

IMPORTED = Annotator("imported", AnnotatorKind.HUMAN)
"""Who gave a verdict in a file that does not say."""

WORDS = Words()
"""Our own words for verdicts, and no others."""


class Format(StrEnum):
    """How a file writes down comparisons."""

    ROWS = "rows"
    """Our own: prompt, left, right, verdict; one row per verdict."""
    PAIRS = "pairs"
    """prompt, chosen, rejected: texts, messages, or lists of messages."""
    HH = "hh"
    """chosen, rejected: whole transcripts with `\\n\\nHuman: ` and `\\n\\nAssistant: ` turns."""


SIDES = {Format.ROWS: ("left", "right"), Format.PAIRS: ("chosen", "rejected"), Format.HH: ("chosen", "rejected")}
_TEXT: dict[Format, dict[str, type]] = {
    Format.ROWS: {"prompt": str, "left": str, "right": str, "verdict": str},
    Format.PAIRS: {"prompt": list, "chosen": list, "rejected": list},
    Format.HH: {"chosen": str, "rejected": str},
}
_SHOWN: dict[Format, dict[str, type]] = {
    Format.ROWS: {"exchanged": bool, "drawn": str, "draw_probability": float, "draw_pool": int},
    # Their sides are drawn anew, so that nothing is left of how they were shown.
    Format.PAIRS: {},
    Format.HH: {},
}
_SIDE = {"model": str, "finish": str, "sampling": str}
_COMMON: dict[str, type] = {"annotator": str, "annotator_kind": str, "strength": int, "created_at": str}
_COMMON |= {"seconds": float, "reasons": str, "comment": str, "asked_how": str, "ask_probability": float}
_COMMON |= {"asked_by": str}
COLUMNS: dict[Format, dict[str, type]] = {
    fmt: _TEXT[fmt]
    | _COMMON
    | {f"{side}_{name}": kind for side in SIDES[fmt] for name, kind in _SIDE.items()}
    | _SHOWN[fmt]
    for fmt in Format
}
"""The fields of each format with their types, in the order in which they are written."""


def detect(fields: Fields) -> Format | None:
    """Return the format that these fields belong to, None if to none."""
    if {"left", "right", "verdict"} & fields.keys():
        return Format.ROWS
    present = [fields[side] for side in ("chosen", "rejected") if side in fields]
    if not present:
        return None
    whole = not {*PROMPT_FIELDS} & fields.keys() and all(isinstance(value, str) for value in present)
    return Format.HH if whole and not all(map(_writes_messages, present)) else Format.PAIRS


def _writes_messages(text: str) -> bool:
    try:
        return messages(text, "chosen") is not None
    except BadRow:
        return True


def parse(fields: Fields, fmt: Format, annotator: Annotator, words: Words | None = WORDS) -> Comparison:
    """Return the comparison that a row describes, with its verdict if it has one. Raises BadRow.

    `annotator` stands for what the row does not say, and `words` say which word is which verdict; without them none is
    read. In `pairs` and `hh` the order of the two responses is that of their hashes with the prompt: the same in every
    import, and the same for those who disagree. A pair with equal scores is a tie.
    """
    prompt, texts = (_transcripts if fmt is Format.HH else _sides)(fields, fmt)
    left, right = (_response(fields, fmt, side, text) for side, text in zip(SIDES[fmt], texts, strict=True))
    if left.text == right.text and not was_asked(fields):
        raise BadRow(Reason.IDENTICAL, SIDES[fmt][1], f"is the same as `{SIDES[fmt][0]}`")
    choice, strength = (None, None) if words is None else _choice(fields, fmt, words)
    verdict = None if choice is None else _verdict(fields, choice, strength, annotator, fmt)
    comparison = Comparison(
        prompt=prompt,
        left=left,
        right=right,
        asked_how=_asked_how(fields, verdict),
        ask_probability=parse_number(fields, "ask_probability", 0, 1),
        verdicts=() if verdict is None else (verdict,),
        asked_by=parse_name(fields, "asked_by", "") or None,
    )
    return comparison if fmt is Format.ROWS else in_order(comparison)


def _asked_how(fields: Fields, verdict: Verdict | None) -> AskedHow:
    """Return how a row says that it was asked: what a reward model chose says so of its drawing too. Raises BadRow."""
    told = parse_member(fields, "asked_how", AskedHow)
    if verdict is None or verdict.drawn is not DrawnHow.ADVERSARIAL:
        return told or AskedHow.IMPORTED
    if told not in (None, AskedHow.ADVERSARIAL):
        raise BadRow(Reason.VALUE, "drawn", f"is adversarial, while `asked_how` is {told}")
    return AskedHow.ADVERSARIAL


def in_order(comparison: Comparison) -> Comparison:
    """Return a comparison of which nobody knows how it was shown with its sides in the order of their hashes."""
    prompt = to_messages(comparison.prompt)
    if digest(prompt, comparison.left.text) <= digest(prompt, comparison.right.text):
        return comparison
    turned = comparison.turned()
    return replace(turned, verdicts=tuple(replace(verdict, exchanged=False) for verdict in turned.verdicts))


def render(comparison: Comparison, verdict: Verdict | None, fmt: Format) -> Fields:
    """Return the row of one verdict, leaving out what `parse` assumes by itself.

    A comparison of an evaluation that nobody has judged does not say who wrote what, or how it was drawn, since people
    may label the file. Raises BadRow when the format cannot hold it: `pairs` and `hh` need a left or right, `hh` a
    dialogue that can be read back from its transcript.
    """
    fields: dict[str, Any] = {}
    sides = (comparison.left, comparison.right)
    if fmt is Format.ROWS:
        fields["prompt"] = prompt_text(comparison.prompt)
        fields |= {side: answer_text(response.text) for side, response in zip(SIDES[fmt], sides, strict=True)}
        fields["verdict"] = "" if verdict is None else verdict.choice.value
    else:
        if verdict is None or verdict.choice not in (Choice.LEFT, Choice.RIGHT):
            raise BadRow(Reason.VERDICT, "", "no verdict" if verdict is None else verdict.choice.value)
        if verdict.choice is Choice.RIGHT:
            sides = (comparison.right, comparison.left)
        fields |= _render_sides(comparison.prompt, sides[0].text, sides[1].text, fmt)
    blind = verdict is None and comparison.asked_how is AskedHow.EVALUATION
    for side, response in zip(SIDES[fmt], sides, strict=True):
        # Each version draws by a seed of its own.
        shown = replace(response, author=IMPORTED.name, sampling=None) if blind else response
        fields |= _render_response(fmt, side, shown)
    if comparison.asked_how is not AskedHow.IMPORTED:
        fields["asked_how"] = comparison.asked_how.value
    fields |= {"ask_probability": comparison.ask_probability, "asked_by": comparison.asked_by}
    return fields if verdict is None else fields | _render_verdict(verdict, fmt)


def _render_sides(prompt: Dialogue, chosen: str, rejected: str, fmt: Format) -> dict[str, Any]:
    if fmt is Format.PAIRS:
        texts = {"chosen": chosen, "rejected": rejected}
        return {"prompt": to_messages(prompt)} | {
            side: [{"role": Role.ASSISTANT.value, "content": text}] for side, text in texts.items()
        }
    if any(turn.role is Role.SYSTEM for turn in prompt):
        raise BadRow(Reason.TRANSCRIPT, "", "a transcript has no system turn")
    start = "".join(_MARKERS[turn.role] + turn.text for turn in prompt) + _MARKERS[Role.ASSISTANT]
    fields = {"chosen": start + chosen, "rejected": start + rejected}
    try:
        read_back = _transcripts(fields)
    except BadRow:
        read_back = None
    if read_back != (prompt, (chosen, rejected)):
        raise BadRow(Reason.TRANSCRIPT, "", "a turn contains the mark of another turn")
    return fields


def _render_response(fmt: Format, side: str, response: Response) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if response.author != IMPORTED.name:
        fields[f"{side}_model"] = response.author
    if response.finish_reason is not _assumed_finish(fmt, response.text):
        fields[f"{side}_finish"] = response.finish_reason.value
    if response.sampling is not None:
        fields[f"{side}_sampling"] = json.dumps(asdict(response.sampling))
    return fields


def _render_verdict(verdict: Verdict, fmt: Format) -> dict[str, Any]:
    fields: dict[str, Any] = {"strength": verdict.strength, "seconds": verdict.seconds}
    fields["comment"] = verdict.comment or None
    if verdict.reasons:
        fields["reasons"] = json.dumps(verdict.reasons, ensure_ascii=False)
    if fmt is Format.ROWS or verdict.annotator != IMPORTED:
        fields |= {"annotator": verdict.annotator.name, "annotator_kind": verdict.annotator.kind.value}
    if fmt is Format.ROWS:
        fields["created_at"] = None if verdict.created_at is None else verdict.created_at.isoformat()
        fields["exchanged"] = verdict.exchanged or None
        if verdict.drawn is not None and verdict.draw_probability is not None:
            fields |= {"drawn": verdict.drawn.value, "draw_probability": verdict.draw_probability}
            fields["draw_pool"] = verdict.draw_pool
    return fields


_MARKERS = {Role.USER: "\n\nHuman: ", Role.ASSISTANT: "\n\nAssistant: "}
_MARKER = re.compile("(" + "|".join(f"{mark} ?" for mark in map(str.rstrip, _MARKERS.values())) + ")")


def _transcripts(fields: Fields, fmt: Format = Format.HH) -> tuple[Dialogue, tuple[str, str]]:
    """Split two transcripts where they part, after the last user turn that they share.

    What follows must be the assistant's; a few transcripts have several assistant turns there, which are one response
    with the mark left inside it, so that the texts remain exactly as they were.
    """
    one, other = SIDES[fmt]
    turns = {side: _turns(parse_text(fields, side), side) for side in (one, other)}
    shared = _shared_prompt(turns[one], turns[other], one)
    texts = []
    for side, dialogue in turns.items():
        rest = dialogue[len(shared) :]
        if not rest or any(turn.role is not Role.ASSISTANT for turn in rest):
            raise BadRow(Reason.TRANSCRIPT, side, "does not differ from the other in the assistant's last turn only")
        texts.append(_MARKERS[Role.ASSISTANT].join(turn.text for turn in rest))
    return with_system(checked_prompt(shared, one), fields), (texts[0], texts[1])


def _turns(text: str, field: str) -> Dialogue:
    if text.startswith("\r\n"):
        text = text.replace("\r\n", "\n")
    before, *parts = _MARKER.split(text)
    roles = {marker.rstrip(): role for role, marker in _MARKERS.items()}
    spoken = [Turn(roles[mark.rstrip()], said) for mark, said in zip(parts[::2], parts[1::2], strict=True)]
    if before or {turn.role for turn in spoken} != {*_MARKERS}:
        # Not as the format has it; as people write transcripts, perhaps.
        if turns := transcript(text, field):
            return tuple(Turn(role, said) for role, said in turns)
        raise BadRow(Reason.TRANSCRIPT, field, "does not begin with a blank line and `Human: `")
    return tuple(spoken)


def _shared_prompt(chosen: Dialogue, rejected: Dialogue, field: str) -> Dialogue:
    length = 0
    for position, (left, right) in enumerate(zip(chosen, rejected, strict=False), start=1):
        if left != right:
            break
        if left.role is Role.USER:
            length = position
    if length == 0:
        raise BadRow(Reason.TRANSCRIPT, field, "shares no user turn with the other response")
    return chosen[:length]


def _sides(fields: Fields, fmt: Format) -> tuple[Dialogue, tuple[str, str]]:
    """Return prompt and texts of a row whose sides are texts, assistant messages, or whole dialogues."""
    one, other = SIDES[fmt]
    answers = {side: _answer(fields, side) for side in (one, other)}
    both = all(dialogue[0].role is not Role.ASSISTANT for dialogue in answers.values())
    stated = None if both and fields.get("prompt") is None else parse_prompt(_asked(fields), shown=was_asked(fields))
    prompt = with_system(_shared_prompt(answers[one], answers[other], one), fields) if both else stated
    if prompt is None or not set(stated or ()) <= set(prompt):
        raise BadRow(Reason.VALUE, "prompt", f"is not what `{one}` and `{other}` share")
    texts = [answer_to(fields.get("prompt"), _last(dialogue, prompt, side)) for side, dialogue in answers.items()]
    if fmt is Format.PAIRS:
        texts = [_continued(text, prompt) for text in texts]
    return checked_prompt(prompt, "prompt", whole=not was_asked(fields)), (texts[0], texts[1])


def _asked(fields: Fields) -> Fields:
    """Return a row whose prompt is in the field `prompt`, wherever it has it as a list of messages."""
    if fields.get("prompt") is not None:
        return fields
    found = next((name for name in (*MESSAGE_FIELDS, "context") if name in fields), "prompt")
    return {"prompt": required(fields, found), "system": fields.get("system")}


def _last(dialogue: Dialogue, prompt: Dialogue, side: str) -> str:
    """Return the answer of a side, after the prompt, with or without its system turn, where the side repeats it."""
    *before, last = dialogue
    if last.role is not Role.ASSISTANT or tuple(before) not in ((), prompt, prompt[1:]):
        raise BadRow(Reason.VALUE, side, "does not end with one assistant message after the prompt")
    return last.text


def _continued(text: str, prompt: Dialogue) -> str:
    """Return the answer in a text: what follows the prompt, where the text is a transcript that repeats it."""
    try:
        turns = [Turn(role, said) for role, said in transcript(text, "") or ()]
    except BadRow:
        turns = []
    return turns[-1].text if turns and tuple(turns[:-1]) == prompt else text


def _answer(fields: Fields, side: str) -> Dialogue:
    value = required(fields, side)
    if isinstance(value, str) and messages(value, side) is None:
        return (Turn(Role.ASSISTANT, parse_text(fields, side)),)
    if isinstance(value, int | float):
        raise BadRow(Reason.WRONG_TYPE, side, "is not a text")
    return parse_dialogue(value, side)


def answer_text(text: str) -> str:
    """Return what the side of a row is read back from: the text, as a message in JSON where it looks like messages."""
    try:
        plain = messages(text, "") is None
    except BadRow:
        plain = False
    message = [{"role": Role.ASSISTANT.value, "content": text}]
    return text if plain else json.dumps(message, ensure_ascii=False)


def _choice(fields: Fields, fmt: Format, words: Words) -> tuple[Choice | None, int | None]:
    if fmt is not Format.ROWS:
        return chosen_or_equal(fields), None
    if "verdict" not in fields:
        raise BadRow(Reason.LACKS_FIELD, "verdict", "is missing")
    word = str(fields["verdict"]).lower() if isinstance(fields["verdict"], bool) else parse_word(fields, "verdict")
    return (None, None) if word is None or not word.strip() else words.read(word)


def _assumed_finish(fmt: Format, text: str) -> FinishReason:
    # A transcript is whole, so an answer without a word was ended there; elsewhere an empty text may be a lost one.
    return FinishReason.STOP if fmt is Format.HH and not text.strip() else FinishReason.UNKNOWN


def _response(fields: Fields, fmt: Format, side: str, text: str) -> Response:
    finish = parse_member(fields, f"{side}_finish", FinishReason) or _assumed_finish(fmt, text)
    if not text.strip() and finish is FinishReason.UNKNOWN and not was_asked(fields):
        raise BadRow(Reason.EMPTY, side, f"is empty, and `{side}_finish` does not say how it ended (`stop`, `length`)")
    author = parse_name(fields, f"{side}_model", parse_word(fields, f"{side}-model") or IMPORTED.name)
    return Response(text, author, finish, parse_sampling(fields, f"{side}_sampling"))


def _verdict(fields: Fields, choice: Choice, said: int | None, default: Annotator, fmt: Format) -> Verdict:
    strength = parse_number(fields, "strength", 1, 3)
    if strength is not None and not strength.is_integer():
        raise BadRow(Reason.VALUE, "strength", "is not 1, 2 or 3")
    strength = said if strength is None else strength
    annotator = Annotator(
        name=parse_name(fields, "annotator", default.name),
        kind=parse_member(fields, "annotator_kind", AnnotatorKind) or default.kind,
    )
    return Verdict(
        choice=choice,
        annotator=annotator.in_file,
        strength=None if strength is None else int(strength),
        created_at=parse_moment(fields, "created_at"),
        seconds=parse_number(fields, "seconds", 0, 1e9),
        reasons=parse_list(fields, "reasons"),
        comment=parse_word(fields, "comment") or "",
        **(_shown(fields) if fmt is Format.ROWS else {}),
    )


def _shown(fields: Fields) -> dict[str, Any]:
    """Return how the verdict's comparison was shown: a draw is known with its probability, or not at all."""
    drawn = parse_member(fields, "drawn", DrawnHow)
    probability = parse_number(fields, "draw_probability", 0, 1)
    if (drawn is None) is not (probability is None):
        absent, there = ("drawn", "draw_probability") if drawn is None else ("draw_probability", "drawn")
        raise BadRow(Reason.LACKS_FIELD, absent, f"is missing, while `{there}` is there")
    pool = parse_number(fields, "draw_pool", 1, LARGEST)
    if pool is not None and drawn is None:
        raise BadRow(Reason.LACKS_FIELD, "drawn", "is missing, while `draw_pool` is there")
    return {
        "exchanged": parse_flag(fields, "exchanged"),
        "drawn": drawn,
        "draw_probability": probability,
        "draw_pool": None if pool is None else int(pool),
    }
