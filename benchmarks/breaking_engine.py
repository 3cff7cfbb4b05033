"""An engine that breaks off its streams, in a process of its own: it can be killed, and tells in a file what it did.

It streams as vLLM does, token ids included (`tests/support/token_engine`); the answer follows from the `user` of a body. Which
stream breaks, where and how follows from the seed, the engine's number and the `user`. What it counts lies in a shared
file (`Tally`), so that a killed engine's counts are not lost.
"""

import argparse
import asyncio
import mmap
import random
import struct
import sys
from pathlib import Path

import uvloop

from tests.support.scripted_engine import DONE, STREAM_HEAD, Conversation, ScriptedEngine, answer, chunked
from tests.support.token_engine import PROMPT, TokenEngine, emissions, random_tokens

#: Before the first byte of an answer: what fails here may go to another engine.
UNSTARTED = ("busy", "draining", "error first", "close first", "reset first")
#: In the stream.
STARTED = (
    "close", "reset", "half", "error", "abort", "unfinished", "truncated frame", "bad frame", "garbage", "slow", "hang",
)  # fmt: skip
_SLOTS = ("asked", "continued", "tokens", "broken", *UNSTARTED, *STARTED)
_SIZE = 8
#: A stream that falls silent costs the whole run its time limit.
_RARE = 0.1
#: Of the streams that cannot be resumed all break, of the others so many: the budget for resumes is half of the traffic.
RESUMABLE_BREAKS = 0.42
#: The budget for retries is a tenth of the traffic.
UNSTARTED_SHARE = 0.05
AGAIN_BREAKS = 0.03


class Tally:
    """What all engines have counted, in one file: a row per engine, written by one process at a time."""

    def __init__(self, path: Path, engines: int) -> None:
        size = engines * len(_SLOTS) * _SIZE
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._engines = engines

    def add(self, engine: int, slot: str, count: int = 1) -> None:
        at = (engine * len(_SLOTS) + _SLOTS.index(slot)) * _SIZE
        struct.pack_into("q", self._map, at, struct.unpack_from("q", self._map, at)[0] + count)

    def read(self) -> dict[str, int]:
        rows = [
            struct.unpack_from(f"{len(_SLOTS)}q", self._map, engine * len(_SLOTS) * _SIZE)
            for engine in range(self._engines)
        ]
        return {slot: sum(row[place] for row in rows) for place, slot in enumerate(_SLOTS)}


class BreakingEngine:
    """The script of one of them."""

    def __init__(self, number: int, seed: int, tally: Tally) -> None:
        self._number = number
        self._seed = seed
        self._tally = tally

    async def __call__(self, conversation: Conversation) -> None:
        if not conversation.body:
            await conversation.send(
                b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                if conversation.path != b"/v1/models"
                else answer({"object": "list", "data": [{"id": "m", "max_model_len": 4096}]})
            )
            return
        body = conversation.json
        again = conversation.path == b"/v1/completions"
        dice = random.Random(f"{self._seed} {self._number} {body['user']} {again}")
        self._tally.add(self._number, "continued" if again else "asked")
        talk = TokenEngine(random_tokens(body["user"]), groups=dice.choice([(1,), (1,), (1, 2), (3,)]))
        talk.per_read = dice.choice([1, 2, 5])
        breaks = AGAIN_BREAKS if again else RESUMABLE_BREAKS if body.get("return_token_ids") else 1.0
        if not body["user"].startswith("s") or dice.random() >= breaks:  # warm-up is left whole
            await talk(conversation)
            self._tally.add(self._number, "tokens", len(talk.tokens))
            return
        way = dice.choice(UNSTARTED if dice.random() < UNSTARTED_SHARE and not again else STARTED)
        if way == "hang" and dice.random() > _RARE:
            way = "close"
        self._tally.add(self._number, "broken")
        self._tally.add(self._number, way)
        if way in UNSTARTED:
            await self._before(conversation, way)
            return
        talk.cut = dice.randrange(len(talk.tokens))
        talk.way = way
        self._tally.add(self._number, "tokens", talk.cut)
        match way:
            case "truncated frame":
                await self._begin(conversation, talk, b"400\r\ndata: {")
                conversation.close()
            case "bad frame":
                await self._begin(conversation, talk, b"no number\r\nx\r\n")
                conversation.close()
            case "garbage":
                await self._begin(conversation, talk, chunked(b"\xff\xfe\x00 <html>\n\n", end=False))
                conversation.close()
            case "slow":
                await self._drip(conversation, talk)
            case "reset":
                await self._begin(conversation, talk, b"")
                await asyncio.sleep(0.003)  # a reset takes back what was not read
                conversation.reset()
            case _:
                await talk(conversation)

    async def _before(self, conversation: Conversation, way: str) -> None:
        match way:
            case "busy":
                await conversation.send(answer({"error": {"message": "full"}}, 503))
            case "draining":
                await conversation.send(answer({"error": {"message": "Request failed after shutdown"}}, 500))
            case "error first":
                frame = b'data: {"error": {"message": "EngineCore encountered an issue", "code": 500}}\n\n'
                await conversation.send(STREAM_HEAD + chunked(frame, DONE))
            case "close first":
                conversation.close()
            case "reset first":
                conversation.reset()

    def _frames(self, conversation: Conversation, talk: TokenEngine) -> list[bytes]:
        body = conversation.json
        chat = conversation.path == b"/v1/chat/completions"
        prompt = PROMPT if chat else body["prompt"]
        start = sum(each >= 1000 for each in prompt)
        made = emissions(talk.tokens, start, body.get("max_tokens") or 4096, talk.groups)
        return talk.frames(body, made, prompt, chat=chat)[: (talk.cut or 0) + chat]

    async def _begin(self, conversation: Conversation, talk: TokenEngine, last: bytes) -> None:
        frames = self._frames(conversation, talk)
        await conversation.send(b"".join([STREAM_HEAD, *(chunked(each, end=False) for each in frames), last]))

    async def _drip(self, conversation: Conversation, talk: TokenEngine) -> None:
        """A few bytes at a time, and then nothing more."""
        await conversation.send(STREAM_HEAD)
        raw = b"".join(chunked(each, end=False) for each in self._frames(conversation, talk))
        for at in range(0, len(raw), 200):
            await conversation.send(raw[at : at + 200])
            await asyncio.sleep(0.002)
        conversation.close()


async def serve(port: int, number: int, engines: int, seed: int, tally: Path) -> None:
    engine = ScriptedEngine(BreakingEngine(number, seed, Tally(tally, engines)))
    engine.port = port
    async with engine:
        while True:
            await asyncio.sleep(5.0)
            engine.conversations.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("port", "number", "engines", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tally", type=Path, required=True)
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.port, args.number, args.engines, args.seed, args.tally))


if __name__ == "__main__":
    sys.exit(main())
