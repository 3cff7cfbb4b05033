"""The prompt of a request as a chain of digests, made of the raw bytes of its body without decoding them.

**Theory.** An engine keeps the KV cache of what it has computed, and a prompt that begins the same way need not be
computed again up to where it differs. To know which engine has the beginning of a prompt, each prompt is cut at fixed
ends and a digest stands for everything up to each of them: `d[k] = xxh3(bytes[end[k-1]:end[k]], seed=d[k-1])`, so two
prompts share `d[k]` exactly when they are the same up to `end[k]` (but for one chance in 2^64).

*What is the prompt.* The value of `messages` (chat, Anthropic), `prompt` (completions) or `input` (responses), as it
stands in the body: msgspec hands out the bytes of a field without looking into it. So neither the order of the fields
nor `stream`, `max_tokens`, `temperature` and the rest make a difference, and the next turn of a conversation, which
repeats the ones before, begins with the same bytes. Clients that write JSON differently (white space, escapes) do not
share with each other, which costs a miss, never a wrong answer.

*What stands before it.* Templates put tools and system texts in front of all messages, so `tools`, `system` and
`instructions` go into the first seed. So do the model's name (an adapter computes other values), vLLM's `cache_salt`,
because engines do not share across it, and what the caller adds as `root`: the tenant, where keys must not share.

*Where it is cut.* Every 256 B at first, where system prompts and short chats differ; from 4 KiB on each end is an eighth
further than the last. What is lost is at most a ninth of the match; a prompt of 32,000 tokens (130 KB) has 43 digests
instead of 508 (19.6 µs instead of 70, performance.md 7). Beyond 512 KiB prompts are not told apart.
"""

from bisect import bisect_right

import xxhash

from nebula_core.wire.openai import Dialect, Facts

BLOCK_BYTES = 256
EVEN_BYTES = 4096
HASHED_BYTES = 512 * 1024
#: What a token of a prompt is worth in bytes of a body; English text, common tokenizers.
BYTES_PER_TOKEN = 4

_digest = xxhash.xxh3_64_intdigest


def _ends() -> tuple[int, ...]:
    ends = list(range(BLOCK_BYTES, EVEN_BYTES + 1, BLOCK_BYTES))
    while ends[-1] < HASHED_BYTES:
        ends.append(min(HASHED_BYTES, (ends[-1] * 9 // 8 + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES))
    return tuple(ends)


#: Bytes after which a prompt is cut, rising.
ENDS = _ends()


def prompt_of(facts: Facts, dialect: Dialect = Dialect.CHAT) -> bytes:
    """The raw bytes of the prompt, as far as they are told apart; nothing where a call has none (embeddings)."""
    raw = facts.messages or facts.prompt or (facts.input if dialect is Dialect.RESPONSES else b"")
    if not raw:
        return b""
    return bytes(raw) if len(raw) <= HASHED_BYTES else bytes(memoryview(raw)[:HASHED_BYTES])


def seed_of(facts: Facts, root: int = 0) -> int:
    """What stands before the prompt, or keeps it apart, as one number."""
    seed = _digest(facts.model.encode("utf-8", "surrogatepass"), root)
    for part in (facts.tools, facts.system, facts.instructions):
        if part:
            seed = _digest(bytes(part), seed ^ len(part))
    salt = facts.cache_salt
    if salt is not None:
        seed = _digest(str(salt).encode("utf-8", "surrogatepass"), ~seed & 0xFFFFFFFFFFFFFFFF)
    return seed


def chain(prompt: bytes, seed: int = 0) -> list[int]:
    """The digests of a prompt at each of `ENDS` before its last byte, which closes the JSON value and is no prompt."""
    digests: list[int] = []
    append = digests.append
    start = 0
    for end in ENDS[: bisect_right(ENDS, len(prompt) - 1)]:
        seed = _digest(prompt[start:end], seed)
        append(seed)
        start = end
    return digests
