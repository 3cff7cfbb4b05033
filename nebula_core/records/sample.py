"""One measurement of one thing: a GPU, a host, an engine. Bytes, ratios 0..1, Celsius, watts, seconds; unknown is None."""

from nebula_core.records.base import Record
from nebula_core.records.ids import GpuId


class GpuProcess(Record):
    """A process that holds device memory; `replica` when it is one of ours."""

    pid: int
    name: str | None = None
    memory_used_bytes: int | None = None
    replica: str | None = None


class GpuSample(Record):
    """Sources: NVML (`nvmlDeviceGet…`), npu-smi, sysfs, or the simulation."""

    gpu: GpuId
    index: int
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    #: Why nothing may be placed here ("Xid 79: fell off the bus"); None is healthy.
    fault: str | None = None


class HostSample(Record):
    cpu_ratio: float | None = None
    load_1m: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    disk_used_bytes: int | None = None
    disk_total_bytes: int | None = None
    network_receive_bytes_per_second: float | None = None
    network_send_bytes_per_second: float | None = None


class EngineSample(Record):
    """What an engine says of itself on `/metrics`, under one set of names whatever the engine calls them.

    Counters are the engine's own (they drop when it restarts); rates and quantiles are taken by the agent over
    the time between two scrapes and are None until there are two.
    """

    requests_running: int | None = None
    requests_waiting: int | None = None
    kv_cache_usage: float | None = None
    kv_cache_tokens: int | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_cache_queries_total: float | None = None
    prefix_cache_hits_total: float | None = None
    preemptions_total: float | None = None
    requests_finished_total: float | None = None
    prompt_tokens_per_second: float | None = None
    generation_tokens_per_second: float | None = None
    prefix_cache_hit_ratio: float | None = None
    ttft_p50_seconds: float | None = None
    ttft_p95_seconds: float | None = None
    itl_p95_seconds: float | None = None
    #: Names the adapter looked for and did not find: the feature that needs them is off, and says so.
    missing: tuple[str, ...] = ()
