"""The parent's end of the engine: sequences go in, text comes out, and the death of the child reaches everybody.

Each step of the child arrives as one message. Its tokens are turned into text at once and laid into the sequence's
tray; whoever reads the tray gets all that lies in it. So chunks coalesce when the reader is slower than the engine, and
a chunk is not a token, as with vLLM.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from nebula_agent.simulator.detokenizer import Detokenizer
from nebula_agent.simulator.faults import RequestFault
from nebula_agent.simulator.metrics import EngineMetrics, Finished, FirstToken
from nebula_agent.simulator.pipe import (
    Abort,
    CacheReset,
    ResetPrefixCache,
    SequenceOutput,
    StepDone,
    Submit,
    ToChild,
    Unframer,
    frame,
    to_parent_decoder,
)

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
QUEUE_FULL = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
DRAINING = "cannot schedule new futures after shutdown"


class EngineFailed(Exception):
    """The engine cannot go on with a sequence; `status` and `kind` are what a client is told."""

    def __init__(self, message: str, *, kind: str = "InternalServerError", status: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a sequence is to be continued, in the terms of a request."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    keep_special: bool = False
    n: int = 1
    #: How many alternatives per token were asked for; None: no log probabilities.
    logprobs: int | None = None
    #: The prompt's log probabilities are asked for too: its prefix is then not read from the cache.
    prompt_logprobs: bool = False
    script: tuple[int, ...] | None = None
    fault: RequestFault | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What came out since the last look: text, its tokens, and with the last of it why it ended."""

    text: str
    tokens: list[int]
    finish_reason: str | None
    stop_reason: str | int | None


@dataclass(slots=True, eq=False)
class Answer:
    """One answer in the making."""

    request_id: str
    prompt: list[int]
    sampling: Sampling
    detokenizer: Detokenizer
    arrived_at: float
    generated: int = 0
    cached_tokens: int = 0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    finished: bool = False
    _text: str = ""
    _tokens: list[int] = field(default_factory=list)
    _finish_reason: str | None = None
    _stop_reason: str | int | None = None
    _failure: EngineFailed | None = None
    _arrival: asyncio.Event = field(default_factory=asyncio.Event)

    async def next_output(self) -> Output:
        """Waits for something new; raises EngineFailed once all that came before it was read."""
        await self._arrival.wait()
        if self._tokens or self._text or self._finish_reason is not None:
            output = Output(self._text, self._tokens, self._finish_reason, self._stop_reason)
            self._text, self._tokens, self._finish_reason = "", [], None
            if self._failure is None:
                self._arrival.clear()
            return output
        raise self._failure or EngineFailed(ENGINE_DEAD)

    def lay(self, text: str, tokens: list[int], finish_reason: str | None, stop_reason: str | int | None) -> None:
        self._text += text
        self._tokens.extend(tokens)
        if finish_reason is not None:
            self._finish_reason, self._stop_reason = finish_reason, stop_reason
            self.finished = True
        self._arrival.set()

    def fail(self, failure: EngineFailed) -> None:
        self.finished = True
        self._failure = failure
        self._arrival.set()


class EngineClient(asyncio.Protocol):
    """Speaks with the child over the pipe; the one place that knows which sequences are open."""

    def __init__(self, metrics: EngineMetrics, *, max_num_queued: int | None, engine_seed: int) -> None:
        self._metrics = metrics
        self._max_num_queued = max_num_queued
        self._engine_seed = engine_seed
        self._ids = itertools.count()
        self._numbers = 0
        self._open: dict[str, Answer] = {}
        self._unframer = Unframer(to_parent_decoder)
        self._transport: asyncio.Transport | None = None
        self._resets: list[asyncio.Future[bool]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_step: StepDone | None = None
        self._prompt_tokens_since = self._generated_since = 0
        self.dead = False
        self.draining = False
        self.silent = False
        #: Called once when the child is gone; the owner of the process decides what follows.
        self.on_death: Callable[[], None] = lambda: None

    # -- what requests call ----------------------------------------------------------------------------------------

    def check_admission(self, count: int) -> None:
        """Raises EngineFailed if `count` more sequences are not let in."""
        if self.dead:
            raise EngineFailed(ENGINE_DEAD)
        if self.draining:
            raise EngineFailed(DRAINING)
        if self._max_num_queued is not None and len(self._open) + count > self._max_num_queued:
            self._metrics.record_rejection()
            raise EngineFailed(QUEUE_FULL, kind="Service Unavailable", status=503)

    def submit(self, prompt: list[int], sampling: Sampling, *, choice: int = 0) -> Answer:
        # The engine's ids are its own: two clients may well send the same one.
        request_id = str(next(self._ids))
        seed: int | None = None
        if sampling.temperature > 0 and sampling.seed is not None:
            seed = sampling.seed + choice
        elif sampling.temperature > 0:
            self._numbers += 1
            seed = (self._engine_seed << 32) + self._numbers
        detokenizer = Detokenizer(sampling.stop, include_stop=sampling.include_stop, keep_special=sampling.keep_special)
        sequence = Answer(request_id, prompt, sampling, detokenizer, time.monotonic())
        fault = sampling.fault
        if fault is not None and fault.kind == "error" and fault.at_token == 0:
            sequence.fail(EngineFailed(ENGINE_DEAD))
            return sequence
        self._open[request_id] = sequence
        self._idle.clear()
        self._send(
            Submit(
                request_id,
                prompt,
                sampling.max_tokens,
                sampling.min_tokens,
                sampling.ignore_eos,
                list(sampling.stop_token_ids),
                seed,
                None if sampling.script is None else list(sampling.script),
                not sampling.prompt_logprobs,
                None if fault is None or fault.kind == "error" else (fault.kind, fault.at_token),
            )
        )
        return sequence

    def release(self, sequences: Sequence[Answer]) -> None:
        """Whoever asked is done or gone: what is still being made is aborted, and counted nowhere, as in vLLM."""
        unfinished = [sequence.request_id for sequence in sequences if not sequence.finished]
        for sequence in sequences:
            self._close(sequence)
        if unfinished and not self.dead:
            self._send(Abort(unfinished))

    async def reset_prefix_cache(self) -> bool:
        if self.dead:
            raise EngineFailed(ENGINE_DEAD)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._resets.append(answer)
        self._send(ResetPrefixCache())
        return await asyncio.wait_for(answer, 10.0)

    # -- what the owner of the process calls -----------------------------------------------------------------------

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def abort_all(self) -> None:
        """Ends every open answer with the reason "abort"."""
        for sequence in list(self._open.values()):
            delta = sequence.detokenizer.feed([], last=True)
            sequence.lay(delta.text, [], "abort", None)
            self._close(sequence)

    def statistics_line(self, seconds: float) -> str | None:
        """What vLLM logs every ten seconds; None if nothing moved since the last line."""
        prompts, generated, last = self._prompt_tokens_since, self._generated_since, self._last_step
        if last is None or not (prompts or generated):
            return None
        self._prompt_tokens_since = self._generated_since = 0
        return (
            f"Engine 000: Avg prompt throughput: {prompts / seconds:.1f} tokens/s, Avg generation throughput: "
            f"{generated / seconds:.1f} tokens/s, Running: {last.running} reqs, Waiting: {last.waiting} reqs, "
            f"GPU KV cache usage: {last.usage * 100:.1f}%"
        )

    def fall_silent(self) -> None:
        """Nothing of what the child makes from now on reaches anybody: the streams stay open without an end."""
        self.silent = True

    # -- the pipe --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._unframer.feed(data):
            if self.silent:
                continue
            if isinstance(message, StepDone):
                self._step_done(message)
            elif isinstance(message, CacheReset):
                self._resets.pop(0).set_result(message.success)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.dead:
            return
        self.dead = True
        if not self.silent:
            for sequence in list(self._open.values()):
                sequence.fail(EngineFailed(ENGINE_DEAD))
                self._close(sequence)
            for answer in self._resets:
                answer.set_exception(EngineFailed(ENGINE_DEAD))
        self.on_death()

    def close(self) -> None:
        """Ends the child, in order: it leaves when its pipe is closed."""
        self.dead = True
        if self._transport is not None:
            self._transport.close()

    def _send(self, message: ToChild) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def _step_done(self, step: StepDone) -> None:
        first_tokens: list[FirstToken] = []
        gaps: list[float] = []
        finished: list[Finished] = []
        generated = 0
        for output in step.outputs:
            generated += len(output.tokens)
            sequence = self._open.get(output.request_id)
            if sequence is None:
                continue
            if sequence.generated == 0:
                sequence.first_token_at = step.at
                sequence.cached_tokens = output.cached_tokens
                first_tokens.append(
                    FirstToken(
                        prompt_tokens=len(sequence.prompt),
                        cached_tokens=output.cached_tokens,
                        ttft_seconds=step.at - sequence.arrived_at,
                    )
                )
            else:
                gaps.append(step.at - sequence.last_token_at)
            sequence.last_token_at = step.at
            reason = self._deliver(sequence, output)
            if reason is not None:
                finished.append(_finished(sequence, output, reason))
        self._last_step = step
        self._generated_since += generated
        self._prompt_tokens_since += sum(first.prompt_tokens for first in first_tokens)
        self._metrics.record_state(step.running, step.waiting, step.usage)
        self._metrics.record_cache(step.prefix_queries, step.prefix_hits)
        if step.outputs or step.preemptions:
            self._metrics.record_step(generated, step.preemptions, first_tokens, gaps)
        for one in finished:
            self._metrics.record_finished(one)

    def _deliver(self, sequence: Answer, output: SequenceOutput) -> str | None:
        """Lays the tokens into the tray; the reason if the sequence is finished by them."""
        fault = sequence.sampling.fault
        sequence.generated += len(output.tokens)
        if fault is not None and fault.kind == "error" and sequence.generated > fault.at_token:
            sequence.fail(EngineFailed(ENGINE_DEAD))
            self._close(sequence)
            if output.finish_reason is None:
                self._send(Abort([sequence.request_id]))
            return None
        delta = sequence.detokenizer.feed(output.tokens, last=output.finish_reason is not None)
        reason: str | None = output.finish_reason
        stop_reason: str | int | None = output.stop_token
        if delta.stop is not None:
            reason, stop_reason = "stop", delta.stop
        sequence.lay(delta.text, output.tokens, reason, stop_reason)
        if reason is not None:
            self._close(sequence)
            if output.finish_reason is None:
                self._send(Abort([sequence.request_id]))
        return reason

    def _close(self, sequence: Answer) -> None:
        self._open.pop(sequence.request_id, None)
        if not self._open:
            self._idle.set()


def _finished(sequence: Answer, output: SequenceOutput, reason: str) -> Finished:
    return Finished(
        reason=reason,
        prompt_tokens=len(sequence.prompt),
        cached_tokens=sequence.cached_tokens,
        generated_tokens=sequence.generated,
        max_tokens=sequence.sampling.max_tokens,
        params_n=sequence.sampling.n,
        preemptions=output.preemptions,
        arrived_at=sequence.arrived_at,
        queued_at=output.queued_at,
        scheduled_at=output.scheduled_at,
        first_token_at=sequence.first_token_at,
        last_token_at=sequence.last_token_at,
    )
