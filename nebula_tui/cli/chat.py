"""`nebula chat`: a conversation through the proxy, from the shell; and `nebula tui`."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from nebula_core.security.text import TextCleaner
from nebula_tui.cli.context import Target
from nebula_tui.cli.errors import BY_STATUS, CommandError, Exit
from nebula_tui.cli.output import emit, say, seconds
from nebula_tui.cli.session import Session


def register(app: typer.Typer) -> None:
    app.command()(chat)
    app.command()(tui)


def chat(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help="The only one when left out.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this and end.")] = None,
    replica: Annotated[str | None, typer.Option(help="Ask this replica (operator).")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
) -> None:
    """Talk to a model; shows the time to first token, the rate and the replica."""
    session: Session = ctx.obj
    target = session.target()
    base = target.openai_base_url
    with session.api() as api:
        base = base or api.get("/cluster").get("openai_base_url")
        if not base:
            raise CommandError(
                "the cluster does not say where its proxy is", hint="set public_url in the proxy's settings"
            )
        if model is None:
            names = [row["name"] for row in api.get("/deployments")["items"]]
            if len(names) != 1:
                listed = ", ".join(names) or "none"
                raise CommandError("which model?", code=Exit.USAGE, hint=f"nebula chat MODEL; there are: {listed}")
            model = names[0]
    history: list[dict[str, str]] = []
    for question in [message] if message else _questions():
        history.append({"role": "user", "content": question})
        body: dict[str, Any] = {
            "model": model,
            "messages": history,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if max_tokens:
            body["max_tokens"] = max_tokens
        history.append({"role": "assistant", "content": _ask(session, target, base, body, replica)})


def _questions() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _ask(session: Session, target: Target, base: str, body: dict[str, Any], replica: str | None) -> str:
    """Streams one answer to stdout; returns its text. Raises CommandError when it fails or is cut."""
    import httpx

    headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
    if replica:
        headers["x-nebula-replica"] = replica
    began = time.monotonic()
    first: float | None = None
    text: list[str] = []
    usage: dict[str, Any] = {}
    cleaner = TextCleaner(newlines=True)
    ended = False
    try:
        with (
            httpx.Client(timeout=httpx.Timeout(session.timeout_seconds, read=300.0)) as client,
            client.stream("POST", f"{base}/chat/completions", json=body, headers=headers) as response,
        ):
            if response.is_error:
                response.read()
                raise _refusal(response)
            served_by = response.headers.get("x-nebula-replica", "?")
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    ended = True
                    break
                chunk = json.loads(data)
                if "error" in chunk:
                    raise CommandError(chunk["error"].get("message", "the engine failed"), hint="ask again")
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", ()):
                    if piece := (choice.get("delta") or {}).get("content"):
                        first = first or time.monotonic()
                        text.append(piece)
                        if session.for_people:
                            sys.stdout.write(cleaner.feed(piece))
                            sys.stdout.flush()
    except httpx.HTTPError as error:
        raise CommandError(f"{base} did not answer: {error}", code=Exit.UNREACHABLE, hint="nebula status") from error
    if not ended:
        raise CommandError("the answer was cut before its end", hint="ask again; `nebula events` says what happened")
    answer = "".join(text)
    # Over the whole answer: engines may hand out many tokens in one piece, so the time after the first says little.
    took = time.monotonic() - began
    tokens = usage.get("completion_tokens")
    rate = tokens / took if tokens and took > 0 else None
    figures = {
        "text": answer,
        "replica": served_by,
        "ttft_seconds": None if first is None else first - began,
        "tokens": tokens,
        "tokens_per_second": rate,
    }
    if session.for_people:
        sys.stdout.write(cleaner.finish() + "\n")
        shown = "–" if rate is None else f"{rate:.0f}"
        say(f"[{served_by} · TTFT {seconds(figures['ttft_seconds'])} · {tokens or '–'} tokens · {shown} tok/s]")
    else:
        emit(figures, session.output)
    return answer


def _refusal(response: Any) -> CommandError:
    code = BY_STATUS.get(response.status_code, Exit.FAILED)
    retry = response.headers.get("retry-after")
    try:
        error = response.json()["error"]
        message, hint = error["message"], error.get("hint")
    except (ValueError, KeyError, TypeError):
        message, hint = f"HTTP {response.status_code}", None
    return CommandError(message, code=code, hint=hint or (f"try again in {retry} s" if retry else None))


def tui(ctx: typer.Context) -> None:
    """Open the dashboards."""
    target = ctx.obj.target()
    from nebula_tui.app import run
    from nebula_tui.settings import TuiSettings

    run(
        TuiSettings(
            control_url=target.url,
            api_key=target.key,
            openai_base_url=target.openai_base_url,
            context=target.name,
            ca_file=target.ca_file,
        )
    )
