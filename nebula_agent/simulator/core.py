"""The child process of the simulated engine: steps through time, as vLLM's EngineCore does.

A plain loop without threads: read what the parent sent, decide a step, let its time pass (still reading, so an abort
takes effect with the next step), send what it made. With nothing to do it blocks on the pipe and uses no processor.
The end of the pipe means that the parent is gone: the child follows, unless it is told to be an orphan.
"""

import ctypes
import mmap
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nebula_agent.simulator.faults import Faults
from nebula_agent.simulator.pipe import (
    Abort,
    CacheReset,
    ResetPrefixCache,
    SequenceOutput,
    StepDone,
    Submit,
    Unframer,
    frame,
    to_child_decoder,
)
from nebula_agent.simulator.reply import Continuation
from nebula_agent.simulator.scheduler import Limits, ScheduledRequest, Scheduler, Step
from nebula_agent.simulator.timing import Preset
from nebula_agent.simulator.tokenizer import tokenizer

_PR_SET_NAME = 15
_SHM_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreSettings:
    """What the child needs to know; `speed` divides every step's time."""

    limits: Limits
    preset: Preset
    speed: float
    faults: Faults


@dataclass(slots=True)
class _Sequence:
    submit: Submit
    request: ScheduledRequest
    text: Continuation
    queued_at: float
    scheduled_at: float = 0.0
    made: int = 0


class ParentGone(Exception):
    """The other end of the pipe is closed."""


@dataclass
class EngineCore:
    """One engine: `run` is its life, `step` one iteration of it."""

    settings: CoreSettings
    connection: socket.socket
    _sequences: dict[str, _Sequence] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(self.settings.limits)
        self._unframer = Unframer(to_child_decoder)
        self._frozen = self.settings.faults.freeze
        self._dying = False

    def run(self) -> None:
        while True:
            self._receive(None if self._frozen or not self._scheduler.busy else 0.0)
            if self._scheduler.busy and not self._frozen:
                self.step()

    def step(self) -> None:
        began = time.monotonic()
        queries, hits = self._scheduler.prefix_queries, self._scheduler.prefix_hits
        step = self._scheduler.schedule()
        for request_id in step.started:
            self._sequences[request_id].scheduled_at = began
        seconds = self.settings.preset.step_seconds(step.decode_requests, step.prefill_tokens)
        self._pass_time(began + seconds / self.settings.speed)
        now = time.monotonic()
        outputs = [self._output(request) for request in self._scheduler.advance(step)]
        for output in outputs:
            if output.finish_reason is not None:
                self._forget(output.request_id)
        self._send_step(step, outputs, now, queries, hits)

    def _send_step(self, step: Step, outputs: list[SequenceOutput], now: float, queries: int, hits: int) -> None:
        done = StepDone(
            outputs,
            now,
            len(self._scheduler.running),
            len(self._scheduler.waiting),
            self._scheduler.pool.usage,
            self._scheduler.prefix_queries - queries,
            self._scheduler.prefix_hits - hits,
            len(step.preempted),
        )
        self.connection.sendall(frame(done))
        if self._dying:
            os.kill(os.getpid(), signal.SIGKILL)

    def _output(self, request: ScheduledRequest) -> SequenceOutput:
        sequence = self._sequences[request.request_id]
        submit = sequence.submit
        token = sequence.text.next_token()
        sequence.made += 1
        request.tokens.append(token)
        finish, stop_token = None, None
        if token == tokenizer().end_of_turn and not submit.ignore_eos:
            finish = "stop"
        elif token in submit.stop_token_ids and sequence.made > submit.min_tokens:
            finish, stop_token = "stop", token
        elif sequence.made >= submit.max_tokens:
            finish = "length"
        if submit.fault is not None and sequence.made >= submit.fault[1]:
            self._dying = self._dying or submit.fault[0] == "crash"
            self._frozen = self._frozen or submit.fault[0] == "freeze"
        return SequenceOutput(
            request.request_id,
            [token],
            finish,
            stop_token,
            request.cached,
            sequence.queued_at,
            sequence.scheduled_at,
            request.preemptions,
        )

    def _forget(self, request_id: str) -> None:
        if self._sequences.pop(request_id, None) is not None:
            self._scheduler.remove(request_id)

    def _pass_time(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self._receive(left)

    def _receive(self, timeout: float | None) -> None:
        """Takes in what the parent has sent, waiting at most `timeout` seconds for it (None: for ever)."""
        readable, _, _ = select.select([self.connection], [], [], timeout)
        if not readable:
            return
        data = self.connection.recv(1 << 20)
        if not data:
            raise ParentGone
        for message in self._unframer.feed(data):
            if not self._frozen:
                self._handle(message)

    def _handle(self, message: Submit | Abort | ResetPrefixCache) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Abort():
                busy = self._scheduler.busy
                for request_id in message.request_ids:
                    self._forget(request_id)
                if busy and not self._scheduler.busy:
                    # The last one left between two steps: without this word the gauges would stay where they were.
                    nothing = Step(tokens={}, decode_requests=0, prefill_tokens=0, started=(), preempted=())
                    self._send_step(
                        nothing, [], time.monotonic(), self._scheduler.prefix_queries, self._scheduler.prefix_hits
                    )
            case ResetPrefixCache():
                self.connection.sendall(frame(CacheReset(self._scheduler.pool.reset_cache())))

    def _submit(self, submit: Submit) -> None:
        request = ScheduledRequest(submit.request_id, list(submit.prompt), submit.read_cache)
        text = Continuation(
            submit.prompt,
            seed=submit.seed,
            ignore_end=submit.ignore_eos,
            min_tokens=submit.min_tokens,
            script=submit.script,
        )
        self._sequences[submit.request_id] = _Sequence(submit, request, text, time.monotonic())
        self._scheduler.add(request)


def set_process_name(name: str) -> None:
    """What `/proc/PID/comm` says, at most 15 characters; names are for people, so no kernel that refuses matters."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def leak_shared_memory() -> list[mmap.mmap]:
    """Maps files as an engine's shared memory, which nobody will unlink; returns the mappings to keep."""
    kept = []
    for name, size in ((f"psm_{os.urandom(4).hex()}", _SHM_BYTES), (f"sem.mp-{os.urandom(4).hex()}", 32)):
        path = Path("/dev/shm") / name  # noqa: S108 - the place is the point
        with path.open("xb+") as file:
            path.chmod(0o600)
            file.truncate(size)
            kept.append(mmap.mmap(file.fileno(), size))
    return kept


def run_child(settings: CoreSettings, connection: socket.socket) -> None:
    """The whole life of the child process; does not return."""
    orphan = settings.faults.orphan_child
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if orphan else signal.SIG_DFL)
    kept = leak_shared_memory() if settings.faults.shm_leak else []
    # Last: who finds it by its name finds it as it was asked for.
    set_process_name("SIM::EngineCore")
    try:
        EngineCore(settings, connection).run()
    except (ParentGone, BrokenPipeError, ConnectionResetError):
        while orphan:
            signal.pause()
    del kept
    sys.stdout.flush()
    os._exit(0)
