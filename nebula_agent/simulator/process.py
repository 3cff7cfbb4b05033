"""The life of the simulated engine's processes: start, child, signals, death, end.

Order of a start: the child is forked first, while there is neither a thread nor an event loop; then the port is opened.
Order of an end, by cause:

- SIGTERM or SIGINT, `--shutdown-timeout 0`: open answers end with the reason "abort", then all is closed.
- the same, above 0: new requests get 500, open ones may finish for so long, /health stays 200; the rest is aborted.
- `sigterm-hang`: the listener closes and the child dies, open streams stay open without another byte, for ever.
- the child dies: error frames, /health 503, after a fifth of `--death-exit-seconds` no listener, then exit 1.
- the parent dies: the child sees the end of its pipe and leaves, unless it was told to be an orphan.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import uvloop

from nebula_agent.simulator.arguments import SimulatorSettings, parse_arguments
from nebula_agent.simulator.client import EngineClient
from nebula_agent.simulator.core import CoreSettings, run_child, set_process_name
from nebula_agent.simulator.http_server import HttpServer
from nebula_agent.simulator.metrics import EngineMetrics
from nebula_agent.simulator.routes import Routes
from nebula_agent.simulator.service import Service
from nebula_agent.simulator.tokenizer import tokenizer

_log = logging.getLogger("nebula_agent.simulator")

_CLOSE_SECONDS = 0.8
_STATS_EVERY_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one simulated engine until it is told to stop; returns the exit status."""
    settings = parse_arguments(sys.argv[1:] if argv is None else argv)
    _configure_logging(access_log=settings.access_log)
    set_process_name("nebula-sim-api")
    faults = settings.faults
    if faults.failed_start_seconds is not None:
        time.sleep(faults.failed_start_seconds)
        _log.error("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
        return 1
    tokenizer()
    parent_end, child_end = socket.socketpair()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        parent_end.close()
        run_child(
            CoreSettings(limits=settings.limits, preset=settings.preset, speed=settings.speed, faults=faults), child_end
        )
    child_end.close()
    return uvloop.run(_Server(settings, child).run(parent_end))


class _Server:
    """The parent process while it serves."""

    def __init__(self, settings: SimulatorSettings, child: int) -> None:
        self._settings = settings
        self._child = child
        self._metrics = EngineMetrics(settings.names[0], settings.max_model_len, _cache_config(settings))
        self._client = EngineClient(
            self._metrics, max_num_queued=settings.max_num_queued_reqs, engine_seed=settings.seed
        )
        service = Service(
            client=self._client,
            names=(*settings.names, *settings.adapters),
            adapters=settings.adapters,
            max_model_len=settings.max_model_len,
            fingerprint=f"vllm-0.32.0-simulated-{os.urandom(4).hex()}",
            faults=settings.faults,
            allow_request_faults=settings.allow_request_faults,
            auto_tools=settings.auto_tools,
        )
        routes = Routes(
            service,
            self._metrics,
            keys=settings.api_keys,
            pooling=settings.pooling,
            dev_mode=settings.dev_mode,
            silent_paths=settings.silent_paths,
        )
        self._http = HttpServer(routes)
        self._stop = asyncio.Event()
        self._death = asyncio.Event()

    async def run(self, pipe: socket.socket) -> int:
        settings = self._settings
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        _log.info("EngineCore is process %d", self._child)
        self._client.on_death = self._death.set
        await loop.create_connection(lambda: self._client, sock=pipe)
        if settings.faults.orphan_after_seconds is not None:
            loop.call_later(settings.faults.orphan_after_seconds, os.kill, os.getpid(), signal.SIGKILL)
        if settings.faults.slow_start_seconds is not None and await self._ended_within(
            settings.faults.slow_start_seconds
        ):
            self._end_child()
            return 0
        try:
            port = await self._http.listen(settings.host, settings.port)
        except OSError as error:
            _log.error("cannot listen on %s:%d: %s", settings.host, settings.port, _why_not(error, settings.port))
            self._end_child()
            return 1
        _log.info("Starting simulated engine on http://%s:%d", settings.host, port)
        statistics = asyncio.create_task(self._log_statistics(), name="statistics")
        try:
            await self._ended_within(None)
            return await (self._after_death() if self._death.is_set() else self._after_signal())
        finally:
            statistics.cancel()

    async def _ended_within(self, seconds: float | None) -> bool:
        """Waits for a signal or the death of the child; False if neither came in time."""
        waits = [asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self._death.wait())]
        done, pending = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return bool(done)

    async def _after_death(self) -> int:
        _log.error("EngineCore encountered a fatal error: process %d is gone", self._child)
        self._reap()
        after = self._settings.death_exit_seconds
        await self._told_to_stop_within(after / 5)
        self._http.close_listener()
        self._http.close_idle()
        await self._told_to_stop_within(after * 4 / 5)
        await self._http.wait_closed(0.0)
        return 1

    async def _told_to_stop_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _after_signal(self) -> int:
        _log.info("Shutdown initiated (timeout=%g)", self._settings.shutdown_timeout_seconds)
        if self._settings.faults.sigterm_hang:
            return await self._hang()
        if self._settings.shutdown_timeout_seconds > 0:
            self._client.draining = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._client.wait_idle(), self._settings.shutdown_timeout_seconds)
        self._client.draining = True
        self._http.close_listener()
        self._client.abort_all()
        await self._http.wait_closed(_CLOSE_SECONDS)
        self._end_child()
        return 0

    async def _hang(self) -> int:
        _log.warning("force killing remaining processes")
        self._client.fall_silent()
        self._http.close_listener()
        os.kill(self._child, signal.SIGKILL)
        self._reap()
        # Further SIGTERMs change nothing, as seen on vLLM: only SIGKILL helps.
        await asyncio.Event().wait()
        return 0

    def _end_child(self) -> None:
        """The child is killed rather than asked: it may be stopped, or frozen on purpose."""
        self._client.close()
        if not self._settings.faults.orphan_child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)

    async def _log_statistics(self) -> None:
        while True:
            await asyncio.sleep(_STATS_EVERY_SECONDS)
            line = self._client.statistics_line(_STATS_EVERY_SECONDS)
            if line is not None:
                _log.info("%s", line)


def _why_not(error: OSError, port: int) -> str:
    if error.errno != errno.EADDRINUSE:
        return str(error.strerror or error)
    # Costs some 50 ms to import: only who fails pays for it.
    from nebula_core.runtime.processes import port_holder  # noqa: PLC0415

    holder = port_holder(port)
    who = f"process {holder.pid} ({holder.program})" if holder else "somebody who cannot be seen from here"
    return f"the port is taken by {who}; choose another with --port, or 0 for any"


def _cache_config(settings: SimulatorSettings) -> dict[str, str]:
    """The labels of `vllm:cache_config_info`; what a simulation has no value for is "None"."""
    limits, preset = settings.limits, settings.preset
    blocks = limits.num_blocks + 1
    tokens = blocks * limits.block_size
    names = (
        "cache_hit_alignment_tokens hash_block_size kv_cache_layout kv_offloading_size mamba_block_size "
        "mamba_page_size_padded num_cpu_blocks num_gpu_blocks_override prefix_match_unit skip_page_size_padded "
        "sliding_window"
    )
    return {
        **dict.fromkeys(names.split(), "None"),
        "_block_size_resolved": "True",
        "block_size": str(limits.block_size),
        "cache_dtype": "auto",
        "effective_attention_block_size": str(limits.block_size),
        "enable_mamba_shared_prefix_checkpoint": "False",
        "enable_prefix_caching": str(limits.prefix_caching),
        "gpu_memory_utilization": "0.92",
        "is_attention_free": "False",
        "kv_cache_dtype_skip_layers": "[]",
        "kv_cache_max_concurrency": str(tokens / settings.max_model_len),
        "kv_cache_memory_bytes": str(tokens * preset.kv_bytes_per_token),
        "kv_cache_size_tokens": str(tokens),
        "kv_offloading_backend": "native",
        "kv_sharing_fast_prefill": "False",
        "mamba_cache_dtype": "auto",
        "mamba_cache_mode": "none",
        "mamba_ssm_cache_dtype": "float32",
        "num_gpu_blocks": str(blocks),
        "prefix_cache_retention_interval": "0",
        "prefix_caching_hash_algo": "builtin",
        "replayssm_buffer_len": "16",
        "swa_bounded_replay": "True",
        "use_kda_recoverssm": "False",
        "use_replayssm": "False",
        "user_specified_block_size": "False",
    }


def _configure_logging(*, access_log: bool) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        logging.Formatter(
            "(APIServer pid=%(process)d) %(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s",
            datefmt="%m-%d %H:%M:%S",
        )
    )
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    plain = logging.StreamHandler(sys.stdout)
    plain.setFormatter(logging.Formatter("INFO:     %(message)s"))
    access = logging.getLogger("nebula_agent.simulator.access")
    access.addHandler(plain)
    access.propagate = False
    access.setLevel(logging.INFO if access_log else logging.WARNING)
