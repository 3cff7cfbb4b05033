"""What it costs to see requests: a record, the rows of what is open, finding one record of ten thousand, tracing.

    python benchmarks/seeing.py [--open 5000] [--records 10000]

CPU of this process on transports that do nothing, and a real store of its own for the records.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.hot_path import PLAIN, Kept, build  # noqa: E402
from nebula_core.records.decision import DecisionRecord  # noqa: E402
from nebula_core.records.deployment import Limits as ReplicaLimits  # noqa: E402
from nebula_core.store.connection import connect  # noqa: E402
from nebula_core.store.embedded import bundled_store_program  # noqa: E402
from nebula_proxy.adapters.telemetry import Exporter  # noqa: E402
from nebula_proxy.traffic.inquiries import Inquiries  # noqa: E402
from nebula_proxy.traffic.plane import Plane  # noqa: E402
from nebula_proxy.traffic.tracing import Tracer  # noqa: E402
from tests.support.store import StoreServer  # noqa: E402


def spent_us(call: Callable[[], object], times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times * 1e6


async def open_many(count: int) -> tuple[Plane, float, float, int]:
    """A plane with so many streams; cost of one record and of one report, and the report's bytes."""
    first, _, wire, plane = await build()
    view = plane.table.models["m0"].view
    roomy = tuple(replace(one, limits=ReplicaLimits(inflight=100_000)) for one in view.endpoints)
    plane.table.update({"m0": replace(view, endpoints=roomy)}, revision=1)
    wire = wire.replace(b'"max_tokens": 100}', b'"stream": true   }')
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    for _ in range(count):
        # A connection each, on both sides: a stream holds one.
        client = type(first)(config=first.config, server_state=first.server_state, app_state={}, _loop=first.loop)
        client.connection_made(first.transport)
        engines = Kept(plane)
        plane.client.request = engines.request  # type: ignore[method-assign,assignment]
        client.data_received(wire)
        engines.answer(head + b"%x\r\n%b\r\n" % (len(event), event))
    if len(plane.ledger) != count:
        raise RuntimeError(f"{len(plane.ledger)} are open, not {count}")
    exchange = next(iter(plane.ledger))
    record_us = spent_us(lambda: exchange.record("sample").to_json(), 500)
    inquiries = Inquiries(plane, None)  # type: ignore[arg-type]
    report_us = spent_us(lambda: inquiries.report().to_json(), 20)
    return plane, record_us, report_us, len(inquiries.report().to_json())


async def find(record: DecisionRecord, count: int) -> tuple[float, float]:
    """CPU and longest turn of the loop, in ms, of looking for a record that is not there."""
    with tempfile.TemporaryDirectory(prefix="nbs") as directory:
        server = StoreServer(bundled_store_program(), Path(directory)).start()
        try:
            async with await connect(server.settings()) as store:
                for start in range(0, count, 200):
                    await store.append_requests(
                        [record.model_copy(update={"id": f"req-{number}"}) for number in range(start, start + 200)]
                    )
                longest = 0.0
                over = asyncio.Event()

                async def watch() -> None:
                    nonlocal longest
                    while not over.is_set():
                        began = time.perf_counter()
                        await asyncio.sleep(0)
                        longest = max(longest, time.perf_counter() - began)

                watcher = asyncio.create_task(watch())
                began = time.perf_counter()
                found = await store.find_request("req-nowhere")
                took = time.perf_counter() - began
                over.set()
                await watcher
                if found is not None:
                    raise RuntimeError("it should not be there")
                return took * 1000, longest * 1000
        finally:
            server.kill()


async def traced(ratio: float | None, count: int = 5000) -> float:
    """µs of a request; `ratio` None: tracing is off."""
    protocol, kept, wire, plane = await build()
    if ratio is not None:
        plane.tracer = Tracer(Exporter("http://127.0.0.1:9", ratio, "bench"))
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(PLAIN), PLAIN)

    def one() -> None:
        protocol.data_received(wire)
        kept.answer(answer)

    return spent_us(one, count)


async def measure(count: int, records: int) -> dict[str, float | int | str]:
    plane, record_us, report_us, report_bytes = await open_many(count)
    record = next(iter(plane.ledger)).record("sample")
    found_ms, stall_ms = await find(record, records)
    return {
        "benchmark": "seeing",
        "record_us": round(record_us, 1),
        "record_bytes": len(record.to_json()),
        "open": count,
        "report_ms": round(report_us / 1000, 2),
        "report_bytes": report_bytes,
        "records": records,
        "find_missing_ms": round(found_ms, 1),
        "find_longest_turn_ms": round(stall_ms, 2),
        "request_us_untraced": round(min([await traced(None) for _ in range(3)]), 2),
        "request_us_not_sampled": round(min([await traced(0.0) for _ in range(3)]), 2),
        "request_us_sampled": round(await traced(1.0, 1000), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--open", type=int, default=5000)
    parser.add_argument("--records", type=int, default=10_000)
    args = parser.parse_args()
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    figures = asyncio.run(measure(args.open, args.records))
    print(
        f"record {figures['record_us']} us, {figures['open']} open shown in {figures['report_ms']} ms, "
        f"missing among {figures['records']} in {figures['find_missing_ms']} ms, "
        f"traced +{figures['request_us_not_sampled'] - figures['request_us_untraced']:.1f} us unsampled"  # type: ignore[operator]
    )
    print(json.dumps(figures))
    os._exit(0)  # the exporter's thread would wait for a collector that is not there


if __name__ == "__main__":
    main()
