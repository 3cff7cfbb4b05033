"""What a request may ask of an engine at most (reliability T22): values that make one client's request everybody's trouble.

An engine judges its parameters itself, and its words are better than ours. Refused here is only what engines take in and
then suffer from: many choices, the whole vocabulary as log probabilities, patterns that take minutes to compile, templates
that run on the engine, texts nested so deeply that its parser gives up with a 500. And what has no business in a body:
addresses and keys of other services, which gateways obey and which end up in logs.

Defaults are far above what people send; each is a setting (`[parameters]`).
"""

from typing import Any, NamedTuple

from nebula_core.wire.json_depth import is_deeper
from nebula_core.wire.openai import Facts, count_entries, read_patterns
from nebula_proxy.decisions.refusal import Refusal, bad_request


class ParameterLimits(NamedTuple):
    """The most a request may ask; 0 forbids the parameter, None sets no limit."""

    #: `n` and `best_of`: each choice is a sequence of its own in the engine.
    max_choices: int | None = 8
    #: `logprobs`, `top_logprobs`, `prompt_logprobs`: OpenAI's and vLLM's own limit; -1 asks for the whole vocabulary.
    max_logprobs: int | None = 20
    #: Entries of `stop`: each is searched for in every step.
    max_stops: int | None = 16
    max_messages: int | None = 4096
    max_json_depth: int | None = 64
    #: Length of a regular expression or grammar for structured output: compiling one takes exponential time.
    max_pattern_bytes: int | None = 4096
    #: `chat_template`: a program (Jinja) of the client's that the engine runs.
    allow_chat_template: bool = False


#: Shorter than this no list of messages is too long; an entry takes at least two bytes.
_LARGE = 2 * 1024

NO_PARAMETER_LIMITS = ParameterLimits(None, None, None, None, None, None, allow_chat_template=True)


def check_parameters(facts: Facts, body: bytes, limits: ParameterLimits) -> Refusal | None:
    """None for a request that asks for no more than it may."""
    if facts.asks_more(_LARGE) and (refusal := _check_more(facts, limits)) is not None:
        return refusal
    depth = limits.max_json_depth
    if depth is not None and is_deeper(body, depth):
        return bad_request(f"The body is nested more than {depth} deep", hint="send a flatter JSON object")
    return None


def _check_more(facts: Facts, limits: ParameterLimits) -> Refusal | None:
    for name in ("api_base", "base_url", "api_key"):
        if getattr(facts, name) is not None:
            return bad_request(
                f"`{name}` does not belong in a body: nothing here calls other services",
                param=name,
                hint="leave it out; the key goes into the Authorization header, the address into the client's settings",
            )
    if facts.chat_template is not None and not limits.allow_chat_template:
        return bad_request(
            "`chat_template` is not accepted: it is a program that the engine would run",
            param="chat_template",
            hint="give the deployment a template, or set parameters.allow_chat_template of the proxy",
        )
    for name in ("n", "best_of"):
        if _beyond(getattr(facts, name), limits.max_choices):
            return _too_much(name, limits.max_choices, "max_choices")
    for name in ("logprobs", "top_logprobs", "prompt_logprobs"):
        value = getattr(facts, name)
        if _beyond(value, limits.max_logprobs) or (value == -1 and limits.max_logprobs is not None):
            return _too_much(name, limits.max_logprobs, "max_logprobs")
    stops = facts.stop
    if isinstance(stops, list) and _beyond(len(stops), limits.max_stops):
        return _too_much("stop", limits.max_stops, "max_stops", what="entries")
    return _check_large(facts, limits)


def _check_large(facts: Facts, limits: ParameterLimits) -> Refusal | None:
    messages, most = facts.messages, limits.max_messages
    if most is not None and len(messages) > 2 * most and _beyond(count_entries(messages), most):
        return _too_much("messages", most, "max_messages", what="entries")
    longest = limits.max_pattern_bytes
    for name in ("guided_regex", "guided_grammar"):
        if _longer(getattr(facts, name), longest):
            return _too_much(name, longest, "max_pattern_bytes", what="bytes")
    outputs = facts.structured_outputs
    if longest is not None and len(outputs) > longest:
        patterns = read_patterns(outputs)
        for name in ("regex", "grammar"):
            if patterns is not None and _longer(getattr(patterns, name), longest):
                return _too_much(f"structured_outputs.{name}", longest, "max_pattern_bytes", what="bytes")
    return None


def _beyond(value: Any, most: int | None) -> bool:
    return most is not None and type(value) is int and value > most


def _longer(value: Any, most: int | None) -> bool:
    return most is not None and isinstance(value, str) and len(value.encode("utf-8", "replace")) > most


def _too_much(name: str, most: int | None, setting: str, *, what: str = "") -> Refusal:
    allowed = f"{most} {what}".strip()
    return bad_request(
        f"`{name}` is more than is accepted here ({allowed})",
        param=name,
        hint=f"ask for at most {allowed}; an operator may raise parameters.{setting} of the proxy",
    )
