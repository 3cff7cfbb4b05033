"""What an object store's refusals mean for somebody who wanted a model, and what to do next.

Codes are those of the S3 API ("Error responses" of its reference); an answer without a body (to HEAD) has its status for
a code. The store's own message is left out where it may repeat a part of the credentials.
"""

from nebula_agent.adapters.model_place import FetchFailed, RangeRefused

_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "401"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"})
_ELSEWHERE = frozenset(
    {
        *("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "307", "308"),
        *("IllegalLocationConstraintException", "IncorrectEndpoint"),
    }
)
_MAY_PASS = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted"})
CHANGED = "changed at its place while it was fetched"


def refusal(code: str, status: int, what: str, bucket: str, where: str, *, region: str | None = None) -> FetchFailed:
    """`what` is the source or a file of it, `where` the store's host, `region` what it said of the bucket's own."""
    if code in {"InvalidRange", "416"}:
        return RangeRefused(f"{what}: {where} has nothing after what is here; it is fetched from the start")
    if code in {"PreconditionFailed", "412"}:
        return FetchFailed(f"{what} {CHANGED}", hint="It is fetched anew; do not write to a model that is served")
    if code == "NoSuchBucket":
        return _final(f"{what}: there is no bucket {bucket} at {where}", "Correct `source`, or the endpoint")
    if code in {"NoSuchKey", "NoSuchVersion", "404"}:
        return FetchFailed(f"{what} is not at {where} any more", hint="Put it there, or correct `source`")
    if code in _EXPIRED:
        # In the middle of a download: what came stays, and the next try reads the credentials anew.
        words = f"{what}: the credentials have expired ({code})"
        return FetchFailed(words, hint="Renew the agent's credentials for S3; it goes on where it was")
    if code in _CREDENTIALS:
        return _final(f"{what}: {where} refuses the credentials ({code})", "Renew the agent's credentials for S3")
    if code in _DENIED:
        return _final(
            f"{what}: {where} denies access ({code})",
            f"Let the agent's credentials do s3:ListBucket on {bucket} and s3:GetObject on what is in it",
        )
    if code == "RequestTimeTooSkewed":
        return _final(f"{what}: this node's clock differs too much from that of {where}", "Set the clock (chrony)")
    if code in _ELSEWHERE:
        there = f" in region {region}" if region else " elsewhere"
        return _final(
            f"{what}: bucket {bucket} is{there}, says {where} ({code})", "Set model_cache.s3.region or its endpoint"
        )
    if code == "InvalidObjectState":
        return _final(f"{what} lies in an archive of {where}", "Restore it there first")
    if status >= 500 or status == 429 or code in _MAY_PASS:
        # Without a code of S3's own it is a proxy that speaks, or something else altogether.
        hint = "If that stays, look at model_cache.s3.endpoint: it may not speak S3" if code.isdecimal() else None
        return FetchFailed(f"{what}: {where} answered {status} ({code})", hint=hint)
    return _final(f"{what}: {where} refused it: {status} ({code})", "Look at `source` and at model_cache.s3")


def _final(message: str, hint: str) -> FetchFailed:
    return FetchFailed(message, hint=hint, final=True)
