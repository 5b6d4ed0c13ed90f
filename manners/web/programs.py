"""`/v1/feedback` and `/v1/comparisons`: what people chose in other programs."""

from __future__ import annotations

import hashlib
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header
from pydantic import BaseModel, Field, model_validator
from starlette.responses import JSONResponse
from starlette.responses import Response as HTTPResponse

from manners.store.files.formats import IMPORTED
from manners.store.names import SEPARATOR
from manners.store.programs import OtherContent, Programs, UnknownPair
from manners.store.records import refuse_moment
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.web.auth import Program, Visitor, refuse_if
from manners.web.gate import Gate
from manners.web.limits import STORED
from manners.web.shapes import Messages, Short, Text, problem, size_of
from manners.web.site import Here

router = APIRouter(prefix="/v1", route_class=Gate)


class Opinion(BaseModel):
    """What somebody chose, and what they say about it."""

    choice: Choice
    strength: Annotated[int, Field(ge=1, le=3)] | None = None
    reasons: Annotated[list[Short], Field(max_length=20, fail_fast=True)] = []
    comment: Annotated[Text, Field(max_length=10_000)] = ""
    user: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    """Who it was, under a name that the program made up; the account itself where it is not said."""

    def verdict(self, visitor: Visitor, at: datetime | None = None) -> Verdict:
        """Return the verdict: users of a program are people of their own, apart from those of others."""
        name = visitor.name if self.user is None else f"{visitor.name}{SEPARATOR}{self.user}"
        person = Annotator(name, AnnotatorKind.HUMAN, visitor.account)
        return Verdict(self.choice, person, self.strength, at, None, tuple(self.reasons), self.comment)


class Feedback(Opinion):
    """A verdict on two answers that `X-Ask-Preference` opened."""

    pair_id: Short


class Side(BaseModel):
    """An answer, and who wrote it where that is known."""

    text: Annotated[Text, Field(min_length=1)]
    model: Annotated[Text, Field(min_length=1, max_length=200)] = IMPORTED.name


class JudgedComparison(Opinion):
    """A choice that was made in another program, sides in the order shown."""

    prompt: Annotated[Text, Field(min_length=1)] | Messages
    left: Side
    right: Side
    ask_probability: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    created_at: datetime | None = None

    @model_validator(mode="after")
    def _can_be_compared(self) -> JudgedComparison:
        if not (self.left.text.strip() and self.right.text.strip()):
            raise ValueError("left and right are two answers, and one of them has no word")
        if self.left.text.strip() == self.right.text.strip():
            raise ValueError("left and right say the same, so neither can be better")
        if self.dialogue[-1].role is not Role.USER:
            raise ValueError("the last message of prompt must be the user's")
        if self.created_at is not None and self.created_at.tzinfo is None:
            raise ValueError("created_at needs a time zone, such as 2026-01-31T12:00:00Z")
        if self.created_at is not None:
            refuse_moment(self.created_at)
        return self

    @property
    def dialogue(self) -> Dialogue:
        """The prompt."""
        if isinstance(self.prompt, str):
            return (Turn(Role.USER, self.prompt),)
        return tuple(message.turn for message in self.prompt)

    def comparison(self, visitor: Visitor) -> Comparison:
        """Return the comparison with its verdict."""
        left, right = (Response(side.text, side.model) for side in (self.left, self.right))
        verdict = self.verdict(visitor, self.created_at)
        return Comparison(self.dialogue, left, right, AskedHow.API, self.ask_probability, (verdict,))


@router.post("/feedback")
async def feedback(body: Feedback, visitor: Program, site: Here) -> HTTPResponse:
    """Take the verdict on a pair; a later one of the same user replaces it."""
    refuse_if(site.limits.take("stored", visitor.key, STORED, size_of(body)))
    try:
        judge = partial(Programs(site.store).judge, visitor.key, body.pair_id, body.verdict(visitor))
        await to_thread.run_sync(judge, limiter=site.limits.writing)
    except UnknownPair as error:
        return JSONResponse(problem(str(error), param="pair_id", code="pair_not_found"), 404)
    return JSONResponse({"object": "feedback", "pair_id": body.pair_id, "choice": body.choice})


@router.post("/comparisons")
async def comparisons(
    body: JudgedComparison,
    visitor: Program,
    site: Here,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> HTTPResponse:
    """Take a choice that was made elsewhere; sent again under its `Idempotency-Key`, it is the same one."""
    said = body.model_dump_json().encode()
    refuse_if(site.limits.take("stored", visitor.key, STORED, len(said)))
    content, comparison = hashlib.sha256(said).hexdigest(), body.comparison(visitor)
    try:
        stored: tuple[int, bool] = await to_thread.run_sync(
            Programs(site.store).add, visitor.key, idempotency_key, content, comparison, limiter=site.limits.writing
        )
    except OtherContent as error:
        return JSONResponse(problem(str(error), code="idempotency_key_reused"), 409)
    answer: dict[str, Any] = {"object": "comparison", "id": stored[0], "choice": body.choice}
    return JSONResponse(answer, 201 if stored[1] else 200)
