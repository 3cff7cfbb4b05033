"""The schema doctor: which of the names that an engine's version should have are on its `/metrics`, and what is off without them.

Engines rename their metrics, and a reader that takes an absent name for 0 routes by zeros (production-stack#617). So the
names are looked at once per engine epoch, and again when the page gains or loses one (SGLang's counters come with their
first event); the verdict travels in the report.
"""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from nebula_agent.engines.metrics import OPTIONAL, MetricNames
from nebula_agent.engines.versions import Version, knows
from nebula_core.records.engine_health import MetricsSchema

#: What of Nebula needs a figure.
_NEEDED_FOR = {
    "running": "load in routing, hang detection",
    "waiting": "admission by the engine's queue",
    "kv_cache_usage": "routing and admission by KV cache",
    "prompt_tokens": "prompt rate",
    "generation_tokens": "token rate, progress",
    "prefix_queries": "prefix hit ratio",
    "prefix_hits": "prefix hit ratio",
    "preemptions": "preemptions",
    "finished": "finished requests",
    "ttft": "the engine's own first-token times (the proxy's stay)",
    "itl": "the engine's own token gaps (the proxy's stay)",
}
_FAMILY = re.compile(r"^# TYPE ([^\s]+) ", re.MULTILINE)
_SUFFIX = re.compile(r"_(?:total|bucket|count|sum)$")
_ALIKE = 0.75


def examine(
    names: MetricNames, present: Collection[str], version: Version | None, version_text: str | None, *, page: str = ""
) -> MetricsSchema:
    """The verdict on one page. `present` are the wanted series names on it, `page` its text, for what resembles a missing one."""
    expected = found = 0
    renamed: list[tuple[str, str]] = []
    missing: list[str] = []
    off: list[str] = []
    for figure, purpose in _NEEDED_FOR.items():
        candidates = names.candidates(figure)
        wanted = next((name for name in candidates if knows(names.known, name, version)), None)
        if wanted is None:
            continue  # this version has no such figure under any name
        here = next((name for name in candidates if names.series_name(figure, name) in present), None)
        if here is None and names.may_come_late(figure):
            continue
        expected += 1
        if here is None:
            missing.append(wanted)
            if figure not in OPTIONAL and purpose not in off:
                off.append(purpose)
            continue
        found += 1
        if here != wanted:
            renamed.append((wanted, here))
    return MetricsSchema(
        engine_version=version_text,
        expected=expected,
        found=found,
        renamed=tuple(renamed),
        missing=tuple(missing),
        resembling=tuple(_resembling(missing, _FAMILY.findall(page), names.wanted())) if missing else (),
        off=tuple(off),
    )


def _resembling(missing: Iterable[str], families: Iterable[str], known: Collection[str]) -> Iterable[tuple[str, str]]:
    """For each missing name the family on the page that is most like it, of those we have no use for."""
    ours = {_SUFFIX.sub("", name) for name in known}
    strangers = [
        family for family in families if _SUFFIX.sub("", family) not in ours and not family.endswith("_created")
    ]
    for name in missing:
        for alike in get_close_matches(name, strangers, n=1, cutoff=_ALIKE):
            yield name, alike
