"""The log pane under load, to be measured from outside: N lines a second of 8 sources with a search active.

ptybench.py --marker 'seq=' --seconds 20 -- python benchmarks/tui_log.py --lines 50000
"""

import argparse
import time

from textual.app import App, ComposeResult

from nebula_tui.presenters.loglines import make_entry
from nebula_tui.themes import DEFAULT, register_themes
from nebula_tui.widgets import LogRing, Panel

TEXTS = (
    "INFO  POST /v1/chat/completions 200 in=812 out=1208 ttft=0.31s",
    "INFO  Running 48, Waiting 9, KV 96.1%, prefix hit 18.2%, gen 3310.2 tok/s",
    "WARN  preempted seq c-9fa8 (recompute): kv blocks exhausted",
    "INFO  chunked prefill 8192/23110",
    "ERROR upstream r2 first-byte 5.02s > slo 5s; hedged to r4",
)


class LogApp(App[None]):
    def __init__(self, lines: int, search: str) -> None:
        super().__init__()
        self.lines, self.search = lines, search
        self.sent = 0
        self.began = 0.0

    def compose(self) -> ComposeResult:
        yield Panel(LogRing(), title="log")

    def on_mount(self) -> None:
        register_themes(self)
        self.theme = DEFAULT
        self.query_one(LogRing).focus()
        self.query_one(LogRing).set_search(self.search)
        self.began = time.monotonic()
        self.set_interval(0.02, self.feed)

    def feed(self) -> None:
        due = int((time.monotonic() - self.began) * self.lines)
        now = time.time()
        batch = [make_entry(now, f"ds/r{n % 8}", f"{TEXTS[n % 5]} seq={n}") for n in range(self.sent, due)]
        self.sent = due
        self.query_one(LogRing).append(batch)

    def on_log_ring_status_changed(self, event: LogRing.StatusChanged) -> None:
        s = event.log_ring.status
        self.query_one(Panel).set_note(f"{s.hits:,} hits · ring {s.kept:,}/{s.capacity:,} · {s.lost} lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--search", default="preempt|Xid")
    args = parser.parse_args()
    LogApp(args.lines, args.search).run()


if __name__ == "__main__":
    main()
