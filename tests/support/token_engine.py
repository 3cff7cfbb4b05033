"""A model whose answer is written down token by token, and an engine that streams it as vLLM does.

The answer is a list of byte strings, one per token; the id of the token at place n is `FIRST_ID + n`, so a prompt that
holds the first n of them is continued at place n. Text leaves as it does in vLLM: nothing while a character is
incomplete, and never the last `longest stop string - 1` characters before the end is known.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.scripted_engine import DONE, STREAM_HEAD, Conversation, answer, chunked

FIRST_ID = 1000
PROMPT = [7, 8, 9]
CONTEXT = 4096


@dataclass
class Emission:
    ids: list[int]
    text: str
    finish: str | None = None
    stop: str | None = None


def emissions(
    tokens: Sequence[bytes], start: int, limit: int, groups: Sequence[int], stops: Sequence[str] = ()
) -> list[Emission]:
    """What an engine streams from place `start` on: `limit` tokens at most, in groups of these sizes (repeated)."""
    lag = max((len(stop) for stop in stops), default=1) - 1
    sent = 0
    text = ""
    pending = b""
    made: list[Emission] = []
    place = start
    turn = 0
    while True:
        ids: list[int] = []
        finish = stop = None
        while finish is None and len(ids) < groups[turn % len(groups)]:
            ids.append(FIRST_ID + place)
            if place < len(tokens):
                pending += tokens[place]
                decoded = pending.decode("utf-8", "replace")
                if not decoded.endswith("�"):
                    text += decoded
                    pending = b""
            else:
                finish = "stop"  # the end-of-text token
            place += 1
            found = [(text.index(each), each) for each in stops if each in text]
            if found:
                at, stop = min(found)
                text, finish = text[:at], "stop"
            elif finish is None and place - start >= limit:
                finish = "length"
        shown = len(text) if finish else max(sent, len(text) - lag)
        made.append(Emission(ids, text[sent:shown], finish, stop))
        sent = max(sent, shown)
        turn += 1
        if finish:
            return made


def whole(made: Sequence[Emission]) -> str:
    return "".join(each.text for each in made)


def random_tokens(name: str) -> list[bytes]:
    """The tokens of the answer to one request, some of its characters split between tokens."""
    dice = random.Random(name)
    raw = "".join(
        dice.choice(["a", " the", "é", "€", "𝄞", "\n", '"', "\\"]) for _ in range(dice.randrange(4, 25))
    ).encode()
    made = []
    while raw:
        size = dice.randrange(1, 5)
        made.append(raw[:size])
        raw = raw[size:]
    return made


@dataclass
class TokenEngine:
    """A script for `ScriptedEngine`: streams `tokens`, and breaks off after `cut` chunks where that is not None."""

    tokens: Sequence[bytes]
    groups: Sequence[int] = (1,)
    cut: int | None = None
    #: The same for the next requests, one by one.
    cuts: list[int] = field(default_factory=list)
    #: close, reset, error, abort, unfinished, hang
    way: str = "close"
    #: Ignores `return_token_ids`, as an engine that does not know it.
    ignores: bool = False
    per_read: int = 1
    pace: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, conversation: Conversation) -> None:
        if conversation.path == b"/v1/models":
            await conversation.send(answer({"object": "list", "data": [{"id": "m", "max_model_len": CONTEXT}]}))
            return
        body = conversation.json
        self.asked.append(body | {"path": conversation.path.decode()})
        chat = conversation.path == b"/v1/chat/completions"
        prompt = PROMPT if chat or isinstance(body["prompt"], str) else body["prompt"]
        start = sum(each >= FIRST_ID for each in prompt)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or CONTEXT
        stops = body.get("stop") or []
        made = emissions(self.tokens, start, limit, self.groups, [stops] if isinstance(stops, str) else stops)
        frames = self.frames(body, made, prompt, chat=chat)
        cut = self.cuts.pop(0) if self.cuts else self.cut
        if cut is None:
            await self._send(conversation, [STREAM_HEAD, *(chunked(each, end=False) for each in frames), chunked(DONE)])
            return
        head = [STREAM_HEAD, *(chunked(each, end=False) for each in frames[: cut + chat])]
        await self._send(conversation, head)
        match self.way:
            case "close":
                conversation.close()
            case "reset":
                conversation.reset()
            case "half":
                await conversation.send(chunked(b'data: {"id":"x","cho', end=False))
                conversation.close()
            case "error":
                frame = b'data: {"error": {"message": "EngineCore encountered an issue", "code": 500}}\n\n'
                await conversation.send(chunked(frame, DONE))
            case "abort":
                last = Emission([], "", "abort")
                await conversation.send(chunked(*self.frames(body, [last], prompt, chat=chat)[chat:], DONE))
            case "unfinished":
                await conversation.send(chunked())
            case "hang":
                await conversation.gone.wait()

    async def _send(self, conversation: Conversation, pieces: list[bytes]) -> None:
        for at in range(0, len(pieces), self.per_read):
            await conversation.send(b"".join(pieces[at : at + self.per_read]))
            await asyncio.sleep(self.pace)

    def frames(self, body: dict[str, Any], made: Sequence[Emission], prompt: list[int], *, chat: bool) -> list[bytes]:
        options = body.get("stream_options") or {}
        want = bool(body.get("return_token_ids")) and not self.ignores
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": f"id-{id(self)}", "object": kind, "created": 5, "model": "m"}
        frames = []
        count = 0
        if chat:
            opening = {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            ids = {"prompt_token_ids": prompt if want else None, "prompt_text": None}
            frames.append(_frame(head | {"choices": [opening]} | ids))
        for number, each in enumerate(made):
            count += len(each.ids)
            ids = {"token_ids": each.ids if want else None}
            if chat:
                choice = {"index": 0, "delta": {"content": each.text}, "logprobs": None, "finish_reason": each.finish}
                choice |= ({"stop_reason": each.stop} if each.finish else {}) | ids
            else:
                choice = {"index": 0, "text": each.text, "logprobs": None, "finish_reason": each.finish}
                prompt_ids = {"prompt_token_ids": prompt if want and number == 0 else None}
                choice |= {"stop_reason": each.stop} | prompt_ids | ids
            frame = head | {"choices": [choice]}
            if each.finish and not options.get("include_usage"):
                frame["system_fingerprint"] = "vllm-0.32.0"
            if options.get("continuous_usage_stats"):
                frame["usage"] = _usage(len(prompt), count)
            frames.append(_frame(frame))
        if options.get("include_usage"):
            usage = {"choices": [], "usage": _usage(len(prompt), count), "system_fingerprint": "vllm-0.32.0"}
            frames.append(_frame(head | usage))
        return frames


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _frame(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
