"""The shapes of OpenAI's chat completions: what is asked, and how answers, pieces of answers and mistakes look.

Source: OpenAI API reference, "Chat". Fields that we do not know are ignored, except those whose silent loss would
change what comes back: these are refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from manners.models.requests import MOST_STOPS, DrawnToken, TokenLogprob
from manners.store.accounts import LONGEST_NAME, LONGEST_PASSWORD
from manners.types import Dialogue, FinishReason, Role, Turn

ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
NOT_OURS = ("tools", "tool_choice", "functions", "function_call", "logit_bias", "audio", "prediction")
"""Fields that must be absent or empty: without them the answer would be another one."""
PENALTIES = ("presence_penalty", "frequency_penalty")
"""Fields that must be 0."""

Text = Annotated[str, Field(pattern="^[^\\x00]*$")]
"""Without the character NUL, which PostgreSQL cannot hold."""
Password = Annotated[str, Field(max_length=LONGEST_PASSWORD)]
AccountName = Annotated[Text, Field(max_length=LONGEST_NAME)]
Number = Annotated[int, Field(ge=0, lt=2**31)]
"""A number that every database can hold: of a comparison, a view, a response."""
Token = Annotated[str, Field(pattern=r"^[0-9]{1,18}-[0-9a-f]{1,16}$")]
"""What stands for a comparison, an answer or a report on a page: see `token_of`."""
Short = Annotated[Text, Field(max_length=200)]
MOST_ANSWERS = 128
"""Answers to one request."""
MOST_MESSAGES = 1000
"""Turns of a dialogue, and pieces of a turn; imports from files take more."""


class Part(BaseModel):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=MOST_MESSAGES, fail_fast=True)] | None = None
    """None is what clients send for a turn without words."""

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        return self

    @property
    def turn(self) -> Turn:
        """The turn as we know it."""
        said = self.content or ""
        text = said if isinstance(said, str) else "".join(part.text for part in said)
        return Turn(ROLES[self.role], text)


Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a request for chat completions."""

    model_config = ConfigDict(extra="allow")
    model: Short
    messages: Messages
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """0 takes the likeliest token, as temperature 0 does."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    user: Short | None = None

    @property
    def prompt(self) -> Dialogue:
        """The dialogue to be answered, without the beginning of the answer."""
        turns = tuple(message.turn for message in self.messages)
        return turns[:-1] if turns[-1].role is Role.ASSISTANT else turns

    @property
    def begun(self) -> str:
        """What the answer begins with, to be continued: a last message of the assistant's."""
        last = self.messages[-1].turn
        return last.text if last.role is Role.ASSISTANT else ""

    @property
    def stops(self) -> tuple[str, ...]:
        """Where an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def refused(self) -> tuple[str, str] | None:
        """Return a field that we cannot do as asked, and why; None if there is none."""
        extra = self.model_extra or {}
        for name in NOT_OURS:
            if extra.get(name) not in (None, [], {}, "none", "auto"):
                return name, f"{name} is not supported here: leave it out"
        for name in PENALTIES:
            if extra.get(name) not in (None, 0):
                return name, f"{name} is not supported here: leave it out"
        form = extra.get("response_format")
        if form is not None and not (isinstance(form, Mapping) and form.get("type") == "text"):
            return "response_format", "only text is written here: leave out response_format"
        if self.top_logprobs is not None and not self.logprobs:
            return "top_logprobs", "top_logprobs goes with logprobs: set it to true"
        if not self.prompt or self.prompt[-1].role is not Role.USER:
            return "messages", "the last message must be the user's, or one answer to it, to be continued"
        return None


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Return how many tokens were read and drawn."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def envelope(kind: str, identity: str, model: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return an answer or a piece of one."""
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model, "choices": choices} | more


def finish(reason: FinishReason) -> str:
    """Return OpenAI's word for why an answer ended."""
    return "length" if reason is FinishReason.LENGTH else "stop"


def logprobs(tokens: Iterable[DrawnToken]) -> dict[str, Any]:
    """Return the tokens with their log-probabilities."""
    content = [_logprob(t.chosen) | {"top_logprobs": [_logprob(other) for other in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}


def size_of(body: BaseModel) -> int:
    """Return about how many bytes a body takes where it is stored."""
    return len(body.model_dump_json().encode())


def problem(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Any:
    """Return a mistake."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def what_is_wrong(error: RequestValidationError) -> tuple[str | None, str, bool]:
    """Return the field that a body got wrong, how, and whether that is too many messages."""
    # A union names its members after the field, and complains for each: the one that got furthest is what was meant.
    complaints = error.errors()
    first = min(complaints, key=lambda complaint: complaint["type"].endswith("_type"))
    where = [str(part) for part in first["loc"][1:] if not str(part).startswith(("list[", "constrained-", "function-"))]
    param = ".".join(where) or None
    too_long = first["type"] == "too_long" and first["ctx"]["max_length"] == MOST_MESSAGES
    return param, f"{param or 'the body'}: {first['msg']}", too_long
