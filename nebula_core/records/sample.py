"""One measurement of one thing: a GPU, a host, an engine. Bytes, ratios 0..1, Celsius, watts, seconds; unknown is None."""

from nebula_core.records.base import Record
from nebula_core.records.ids import GpuId


class GpuProcess(Record):
    """A process that holds device memory; `replica` when it is one of ours."""

    pid: int
    name: str | None = None
    memory_used_bytes: int | None = None
    replica: str | None = None
    user: str | None = None
    #: The container it runs in (its name, else the beginning of its id); None: in none, or nobody can tell.
    container: str | None = None
    #: It was started by this node's agent and no replica owns it any more.
    orphan: bool = False


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
    memory_clock_mhz: int | None = None
    #: Why it runs slower than it could (`power_cap`, `hw_thermal`, …); None is unknown, empty is at full speed.
    throttle_reasons: tuple[str, ...] | None = None
    #: ECC errors since the driver was loaded, and over the life of the card.
    ecc_corrected_total: int | None = None
    ecc_uncorrected_total: int | None = None
    ecc_uncorrected_lifetime_total: int | None = None
    #: A memory row waits for a reset of the card to be remapped.
    row_remap_pending: bool | None = None
    #: PCIe link now, and what card and slot could do together.
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_receive_bytes_per_second: float | None = None
    pcie_send_bytes_per_second: float | None = None
    nvlinks_active: int | None = None
    nvlinks_total: int | None = None
    nvlink_errors_total: int | None = None
    #: The latest Xid the kernel reported for it in this boot.
    xid: int | None = None
    #: Memory in use that no process explains.
    memory_unexplained_bytes: int | None = None


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
    #: Of the fullest rank where there are several: that one preempts next.
    kv_cache_usage: float | None = None
    #: The mean over the ranks; None where there is one.
    kv_cache_usage_mean: float | None = None
    #: Data-parallel ranks behind this address; None is one.
    engine_ranks: int | None = None
    #: How many requests it can run at once, where it says so (llama.cpp): its measure of fullness without a KV figure.
    slots_total: int | None = None
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
