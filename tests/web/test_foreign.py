"""`/v1` under clients that people use: LiteLLM and LangChain in environments of their own, open-webui's requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import lack
from tests.web.test_openai import PATIENCE, Served, ask, served

__all__ = ["served"]

LITELLM = """
import json, sys
import litellm
url, key = sys.argv[1:]
asked = dict(model="openai/manners", api_base=url + "/v1", api_key=key, seed=3, num_retries=0,
             messages=[{"role": "user", "content": "how do I bake bread?"}])
whole = litellm.completion(**asked, max_tokens=16, n=2)
pieces = list(litellm.completion(**asked, max_tokens=16, stream=True, stream_options={"include_usage": True}))
told = litellm.completion(**asked, max_tokens=4, logprobs=True, top_logprobs=2).choices[0].logprobs.content
asked["messages"] = asked["messages"] + [{"role": "assistant", "content": "First, the oven"}]
begun = litellm.completion(**asked, max_tokens=16)
try:
    litellm.completion(**{**asked, "model": "openai/gpt-9"})
    wrong = "nothing"
except litellm.NotFoundError as error:
    wrong = str(error)
print(json.dumps({
    "whole": [choice.message.content for choice in whole.choices],
    "streamed": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
    "tokens": [whole.usage.prompt_tokens, whole.usage.completion_tokens],
    "logprobs": [len(one.top_logprobs) for one in told],
    "begun": begun.choices[0].message.content,
    "wrong": wrong,
}))
"""
LANGCHAIN = """
import json, sys
import openai
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
url, key = sys.argv[1:]
def model(**more):
    return ChatOpenAI(base_url=url + "/v1", api_key=key, seed=3, max_retries=0, **({"model": "manners"} | more))
said = [HumanMessage("how do I bake bread?")]
whole = model(max_tokens=16, n=2).generate([said])
pieces = list(model(max_tokens=16, stream_usage=True).stream(said))
told = model(max_tokens=4).bind(logprobs=True, top_logprobs=2).invoke(said).response_metadata["logprobs"]["content"]
begun = model(max_tokens=16).invoke([*said, AIMessage("First, the oven")])
try:
    model(model="gpt-9").invoke(said)
    wrong = "nothing"
except openai.NotFoundError as error:
    wrong = str(error)
print(json.dumps({
    "whole": [one.text for one in whole.generations[0]],
    "streamed": "".join(piece.content for piece in pieces),
    "tokens": [whole.llm_output["token_usage"][name] for name in ("prompt_tokens", "completion_tokens")],
    "logprobs": [len(one["top_logprobs"]) for one in told],
    "begun": begun.content,
    "wrong": wrong,
}))
"""


def installed(folder: Path, package: str) -> Path:
    """Return the interpreter of a new environment with a package; skips the test where it cannot be had."""
    python = folder / "bin" / "python"
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True)
    if made.returncode:
        lack(f"no environment can be made here: {made.stdout[-200:]}")
    install = [str(python), "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check", package]
    done = subprocess.run(install, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        lack(f"{package} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.long
@pytest.mark.parametrize(
    ("package", "program"),
    [pytest.param("litellm", LITELLM, id="litellm"), pytest.param("langchain-openai", LANGCHAIN, id="langchain")],
)
def test_a_client_gets_what_openais_gets(served: Served, tmp_path: Path, package: str, program: str) -> None:
    python = installed(tmp_path / "env", package)
    command = [str(python), "-c", program, served.url, served.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    two, one = ask(served, n=2), ask(served)
    assert said["whole"] == [choice.message.content for choice in two.choices]
    assert said["tokens"] == [two.usage.prompt_tokens, two.usage.completion_tokens]
    assert said["streamed"] == one.choices[0].message.content
    assert said["logprobs"] == [2, 2, 2, 2]
    oven = [{"role": "user", "content": "how do I bake bread?"}, {"role": "assistant", "content": "First, the oven"}]
    assert said["begun"] == ask(served, messages=oven).choices[0].message.content
    assert "there is no model gpt-9 here: ask for manners" in said["wrong"]


HEADERS = {
    "content-type": "application/json",
    "X-OpenWebUI-User-Name": "Anna%20B",
    "X-OpenWebUI-User-Id": "0f3c2a6e-0000-4000-8000-000000000000",
    "X-OpenWebUI-User-Email": "anna@example.org",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "5b0e7f0a-0000-4000-8000-000000000000",
}
"""What open-webui sends beside the key where it forwards who asks."""
ASKED = {"role": "user", "content": "how do I bake bread?"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "how do I bake bread?"}]}
TASK = "### Task:\nGenerate a concise, 3-5 word title.\n### Chat History:\nUSER: bread?\nASSISTANT: yes\n"
WEBUI: dict[str, dict[str, Any]] = {
    "a chat": {"stream": True, "model": "manners", "messages": [ASKED]},
    "a chat that counts": {
        "stream": True,
        "model": "manners",
        "messages": [{"role": "system", "content": "Be brief."}, ASKED],
        "stream_options": {"include_usage": True},
    },
    "parameters of a model": {
        "stream": True,
        "model": "manners",
        "messages": [ASKED],
        "temperature": 0.7,
        "top_p": 0.9,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "max_tokens": 24,
        "seed": 7,
        "stop": ["###"],
    },
    "text in parts": {"stream": True, "model": "initial", "messages": [PARTS]},
    "an answer stopped at once, and another question": {
        "stream": True,
        "model": "manners",
        "messages": [ASKED, {"role": "assistant", "content": ""}, {"role": "user", "content": "and then?"}],
    },
    "continue this answer": {
        "stream": True,
        "model": "manners",
        "messages": [ASKED, {"role": "assistant", "content": "First, the oven"}],
    },
    "a title": {
        "model": "manners",
        "messages": [{"role": "user", "content": TASK}],
        "stream": False,
        "max_completion_tokens": 100,
    },
    "tags, and follow-ups": {"model": "manners", "messages": [{"role": "user", "content": TASK}], "stream": False},
}
"""Bodies of open-webui's chat, and of the tasks beside it. Source: open-webui, `routers/openai.py`, `tasks.py`."""


@pytest.mark.long
@pytest.mark.parametrize("what", WEBUI)
def test_open_webuis_requests_are_answered(served: Served, what: str) -> None:
    body = WEBUI[what]
    headers = HEADERS | {"authorization": f"Bearer {served.key}"}
    with httpx.Client(base_url=f"{served.url}/v1", headers=headers, timeout=PATIENCE) as client:
        listed = client.get("/models").json()["data"]
        assert body["model"] in [one["id"] for one in listed]
        if not body["stream"]:
            said = client.post("/chat/completions", json=body).raise_for_status().json()
            assert said["choices"][0]["message"]["content"].strip() and said["usage"]["total_tokens"]
            return
        with client.stream("POST", "/chat/completions", json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces if one["choices"])
    assert text.strip() and [one["choices"][0]["finish_reason"] for one in pieces if one["choices"]][-1]
    assert bool(pieces[-1].get("usage")) == ("stream_options" in body)
