"""Chat templates: which one a model has, what is laid down in it for ever, and what it makes of a dialogue.

A template is a program that a stranger wrote: it refuses dialogues, drops turns, and reads the clock. All that is found
out here once, by rendering and looking. Loads neither torch nor transformers, so that an import can ask it too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta

from manners.errors import MannersError
from manners.sandbox import compiled, environment
from manners.types import Dialogue, Role

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""What a model without a chat template gets: `User: ...`, blank line, `Assistant:`; a BOS before it where the tokenizer
itself puts one before a text."""
CHATML = "chatml"
"""What `model.chat_template` calls the layout that any model can be given."""
MARKERS = ("<|im_start|>", "<|im_end|>")
"""What opens a turn there, and what closes it: tokens of their own (`models.markers`)."""
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, as OpenAI wrote it down in 2023: `<|im_start|>ROLE`, a line with the text, `<|im_end|>`; a BOS before it
where the tokenizer itself puts one before a text."""
DEFAULT = "default"
"""Of several templates, the one that is taken unless another is named."""
CLOCK = "strftime_now"
"""What templates that want to know the date call."""
NEVER = date(2000, 1, 1)
"""The day of a template that does not ask for one."""
LONG = 50_000
"""Words of a turn that a template may not cut short."""
_DIRECTIVES = "aAbBdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZcC"
_FOLDED = (
    "{% if messages | length > 1 and messages[0]['role'] == 'system' %}{% set messages = [{'role': messages[1]['role'],"
    " 'content': messages[0]['content'] ~ '\\n\\n' ~ messages[1]['content']}] + messages[2:] %}{% endif %}\n"
)
"""Puts a system turn in front of the first user turn."""

Message = dict[str, str]
"""A turn as templates take it: role and content."""


class Refused(MannersError):
    """A dialogue that the chat template does not lay out."""


@dataclass(frozen=True)
class Template:
    """A chat template with everything laid down that could differ from day to day or from program to program."""

    source: str
    """As the tokenizer, or a file, has it."""
    tokens: Mapping[str, str]
    """What it may write by name: `bos_token`, `eos_token`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Its variables that `model.template_arguments` sets."""
    day: date = NEVER
    """The date that it is told, at midnight, whatever the clock says."""
    plain: bool = False
    """Whether the plain layout stands in for a chat template; recorded with every version."""
    folds: bool = False
    """Whether a system turn joins the first user turn, for the template itself refuses or drops it."""
    opens: str = ""
    """What it writes before an answer, and leaves out where an answer is asked for."""
    note: str = ""
    """What a reader should know: which of several it is, what it does with system turns, which date it tells."""
    _lost: dict[tuple[Role, ...], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def text(self) -> str:
        """The template that lays dialogues out here, and in plain transformers: arguments, date and all."""
        sets = "".join(f"{{% set {name} = {_literal(value)} %}}\n" for name, value in self.arguments.items())
        clock = _frozen_clock(self.day) if self.reads_clock else ""
        laid_out = sets + clock + (_FOLDED if self.folds else "") + self.source
        if not self.opens:
            return laid_out
        opening = f"{{{{ {_literal(self.opens)} }}}}"
        return f"{laid_out.removesuffix(chr(10))}{{%+ if add_generation_prompt %}}{opening}{{% endif %}}"

    @cached_property
    def reads_clock(self) -> bool:
        """Whether it asks for the date; one that was exported from here brings its own."""
        return CLOCK in _read_by(self.source)

    @property
    def identity(self) -> str:
        """What versions must agree on, the date apart."""
        arguments = f"|{json.dumps(self.arguments, sort_keys=True)}" if self.arguments else ""
        return f"{self.source}{arguments}{f'|{self.opens}' if self.opens else ''}"

    def scoring(self, before: str, end: str) -> str:
        """Return a template for plain transformers that lays an answer out as it is scored here.

        That is behind the prompt that it answers, as it was written, with `before` in front and `end` behind it. A
        template by itself may trim an answer, put an empty thought before it, or write something after it.
        """
        split = (
            "{% if messages[-1]['role'] == 'assistant' and not add_generation_prompt %}"
            "{% set manners_answer = messages[-1]['content'] %}{% set messages = messages[:-1] %}"
            "{% set add_generation_prompt = true %}{% endif %}\n"
        )
        answer = f"{{{{ {_literal(before)} ~ manners_answer ~ {_literal(end)} }}}}"
        return f"{split}{self.text.removesuffix(chr(10))}{{%+ if manners_answer is defined %}}{answer}{{% endif %}}"

    def render(self, messages: Sequence[Mapping[str, str]], generation: bool = True) -> str:
        """Return the text of a dialogue, up to where the assistant begins; raises Refused with the template's words."""
        variables = {"tools": None, "documents": None, **self.tokens}
        try:
            turns = [dict(message) for message in messages]
            text = compiled(self.text).render(messages=turns, add_generation_prompt=generation, **variables)
        except Exception as error:  # it is a program, and may fail with anything
            words = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise Refused(f"{_shape(messages)}, which the chat template refuses ({words})") from error
        return str(text)

    def objection(self, dialogue: Dialogue) -> str:
        """Return why a dialogue cannot be laid out, in words that are the same for all of its kind; empty if it can."""
        try:
            self.check(dialogue)
            self.render(messages_of(dialogue))
        except Refused as refused:
            return str(refused)
        return ""

    def objections(self, dialogues: Iterable[Dialogue]) -> dict[Dialogue, str]:
        """Return the objection to each of some dialogues; each is laid out once, however often it comes."""
        return {dialogue: self.objection(dialogue) for dialogue in dict.fromkeys(dialogues)}

    def check(self, dialogue: Dialogue) -> None:
        """Raise Refused where the template drops or moves a turn without a word; `render` finds the rest."""
        if lost := self.lost(tuple(turn.role for turn in dialogue)):
            raise Refused(f"{_shape(messages_of(dialogue))}, of which the chat template {lost} without a word")

    def lost(self, roles: tuple[Role, ...]) -> str:
        """Return what becomes of a turn of dialogues with these roles, by rendering and looking; empty for nothing.

        A turn is dropped, or put before one that it followed; a system turn may be put anywhere.
        """
        if roles not in self._lost:
            if len(self._lost) >= 1000:  # strangers may make up any number
                self._lost.clear()
            texts = [f"manners{number}turn" for number in range(len(roles))]
            try:
                text = self.render([{"role": r.value, "content": t} for r, t in zip(roles, texts, strict=True)])
            except Refused:
                return ""
            gone = [role for role, told in zip(roles, texts, strict=True) if told not in text]
            order = [
                (text.rfind(told), role) for role, told in zip(roles, texts, strict=True) if role is not Role.SYSTEM
            ]
            moved = [role for (before, _), (place, role) in pairwise(order) if place < before]
            self._lost[roles] = f"drops the {gone[0]} turn" if gone else f"moves the {moved[0]} turn" if moved else ""
        return self._lost[roles]


def made(
    found: object,
    tokens: Mapping[str, str],
    *,
    bos: bool = False,
    special: Collection[str] = (),
    wanted: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    day: Callable[[], date] = date.today,
) -> Template:
    """Make the template of a model whose tokenizer brings `found`: a text, several by name, or nothing.

    `bos` says whether the tokenizer itself puts a BOS before every text, and `special` names the tokens that no answer
    contains; `wanted` is `model.chat_template`; `day` is asked only for a template that reads the clock. Raises
    MannersError where there is no template that lays out what a user says, where `wanted` is none, and where the
    template reads no such argument.
    """
    source, note = _chosen(found, wanted)
    if source == CHATML_TEMPLATE and bos:
        source = "{{ bos_token }}" + source
    if source is None:
        if arguments:
            raise MannersError(
                "model.template_arguments is set, but the model has no chat template to read it; take it out, or name a"
                " template with model.chat_template"
            )
        return Template(("{{ bos_token }}" if bos else "") + PLAIN_TEMPLATE, tokens, plain=True)
    arguments = dict(arguments or {})
    _check_arguments(source, arguments)
    notes = [note] if note else []
    chosen = Template(source, tokens, arguments)
    if chosen.reads_clock:
        chosen = Template(source, tokens, arguments, day())
        notes.append(f"the chat template tells the date, which stays {chosen.day}")
    if lays_out_nothing := _user_alone(chosen):
        raise MannersError(f"the chat template {lays_out_nothing}; name another with model.chat_template")
    why = _system_objection(chosen)
    if why:
        notes.append(f"the chat template {why} system turns: they join the first user turn")
    opens = _left_out(chosen, special)
    if opens:
        notes.append(f"where an answer is asked for, the chat template leaves out {opens!r}: it is written here")
    return Template(source, tokens, arguments, chosen.day, folds=bool(why), opens=opens, note="; ".join(notes))


def given(found: object, wanted: str | None) -> bool:
    """Return whether a model is to be laid out as ChatML, and not by a template of its own that is called so."""
    return wanted == CHATML and CHATML not in _by_name(found)


def messages_of(dialogue: Dialogue) -> list[Message]:
    """Return a dialogue as templates take it."""
    return [{"role": turn.role.value, "content": turn.text} for turn in dialogue]


def _chosen(found: object, wanted: str | None) -> tuple[str | None, str]:
    """Return the template that is taken, None for none, and a sentence where there was a choice."""
    several = _by_name(found)
    names = ", ".join(sorted(several))
    if given(found, wanted):
        return CHATML_TEMPLATE, ""
    if wanted is not None and wanted not in several:
        file = Path(wanted).expanduser()
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8"), f"chat template from {wanted}"
            except UnicodeDecodeError as error:
                raise MannersError(
                    f"model.chat_template is {wanted}, which is no text in UTF-8 ({error.reason})"
                ) from error
        there = f"the model has {names}" if several else "the model has none"
        raise MannersError(
            f"model.chat_template is {wanted}, which is neither a file nor a template here: {there}; `{CHATML}` can be"
            " given to any model"
        )
    if not several:
        return None, ""
    name = wanted or (DEFAULT if DEFAULT in several or len(several) > 1 else next(iter(several)))
    if name not in several:
        raise MannersError(
            f"the model has several chat templates, {names}, and none is called {DEFAULT}: say with model.chat_template"
            " which to take"
        )
    note = f"chat template `{name}`, of {names}" if len(several) > 1 or name != DEFAULT else ""
    return several[name], note


def _by_name(found: object) -> dict[str, str]:
    """Return templates by name, however they are written down; raises MannersError for what is no text."""
    if isinstance(found, Sequence) and not isinstance(found, str):  # [{"name": ..., "template": ...}]
        if not all(isinstance(one, Mapping) and {"name", "template"} <= one.keys() for one in found):
            raise MannersError("the model's list of chat templates is damaged: each has a name and a template")
        found = {one["name"]: one["template"] for one in found}
    several = found if isinstance(found, Mapping) else {} if found is None else {DEFAULT: found}
    for name, text in several.items():
        if not isinstance(text, str) or not isinstance(name, str):
            raise MannersError(
                f"the model's chat template {name} is no text but {type(text).__name__}; correct its tokenizer"
            )
    return dict(several)


def _check_arguments(source: str, arguments: Mapping[str, Any]) -> None:
    """Raise MannersError for a variable that the template does not read, or that is not for people to set."""
    read = _read_by(source)
    for name in arguments:
        if name in ("messages", "add_generation_prompt") or name not in read:
            theirs = ", ".join(sorted(read - {"messages", "add_generation_prompt", CLOCK}))
            raise MannersError(
                f"model.template_arguments sets {name}, which this chat template does not take; it takes"
                f" {theirs or 'none'}"
            )


def _read_by(source: str) -> set[str]:
    """Return the variables that a template reads and does not set itself; all is said elsewhere of one that is none."""
    try:
        return meta.find_undeclared_variables(environment().parse(source))
    except TemplateSyntaxError:
        return set()


def _user_alone(template: Template) -> str:
    """Return what is wrong with how a template lays out a single user turn; empty if nothing."""
    try:
        text = template.render([{"role": Role.USER.value, "content": f"manners0turn{' and' * LONG}, manners1turn"}])
    except Refused as refused:
        cause = refused.__cause__
        at = f", line {cause.lineno}" if isinstance(cause, TemplateSyntaxError) else ""
        return f"cannot be used: {cause}{at}".rstrip(".") if isinstance(cause, TemplateError) else f"fails: {cause}"
    if "manners0turn" not in text:
        return "writes nothing of what a user says"
    return "" if "manners1turn" in text else "cuts off the end of what a user says where that is long"


def _system_objection(template: Template) -> str:
    """Return what a template does with a system turn, as a verb, where it does not lay it out."""
    turns = [
        {"role": Role.SYSTEM.value, "content": "manners0turn"},
        {"role": Role.USER.value, "content": "manners1turn"},
    ]
    try:
        return "" if "manners0turn" in template.render(turns) else "drops"
    except Refused:
        return "refuses"


def _left_out(template: Template, special: Collection[str]) -> str:
    """Return what a template writes before an assistant turn and leaves out where an answer is asked for.

    That is all of it where nothing is written there, and what has tokens that no answer contains; an empty thought, of
    tokens that can be drawn, is the model's own to write. Spaces at the end are not counted: an answer is written as a
    text of its own.
    """
    turns = [{"role": Role.USER.value, "content": "x"}, {"role": Role.ASSISTANT.value, "content": "manners1turn"}]
    try:
        whole = template.render(turns, generation=False)
        asked, bare = (template.render(turns[:1], generation=generation) for generation in (True, False))
    except Refused:  # of an answer: nothing can be seen there
        return ""
    before, answer, _ = whole.partition("manners1turn")
    if not answer or not before.startswith(asked):
        return ""
    between = before[len(asked) :].rstrip(" ")
    return between if between.strip() and (asked == bare or any(name in between for name in special)) else ""


def _shape(messages: Sequence[Mapping[str, str]]) -> str:
    """Say what is unusual about who speaks when in a dialogue."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == Role.SYSTEM else roles
    if not turns:
        return "a system turn alone"
    if Role.SYSTEM in turns:
        return "a system turn in the middle"
    if turns[0] == Role.ASSISTANT:
        return "an assistant turn first"
    for role in (Role.USER, Role.ASSISTANT):
        if any(a == b == role for a, b in pairwise(turns)):
            return f"two {role} turns in a row"
    return "a dialogue"


def _literal(value: object) -> str:
    """Write a value of JSON as Jinja reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(name))}: {_literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _frozen_clock(day: date) -> str:
    """Return a macro that stands for the clock: it writes one date in any format."""
    then = datetime.combine(day, time())
    told = [(f"%{flag}{letter}", then.strftime(f"%{flag}{letter}")) for letter in _DIRECTIVES for flag in ("", "-")]
    known = [(directive, text) for directive, text in told if text != directive]
    replaced = "".join(f".replace({_literal(directive)}, {_literal(text)})" for directive, text in known)
    percent = _literal("\ue000")
    kept = f".replace('%%', {percent}){replaced}.replace({percent}, '%')"
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{kept} }}}}{{% endmacro %}}\n"
