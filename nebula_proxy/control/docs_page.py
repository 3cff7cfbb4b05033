"""`/docs`: a page of our own that shows `/openapi.json`; nothing is fetched from elsewhere.

A browser cannot send a key with a first visit, so who has none gets the same page with status 401: it says nothing
about the cluster, asks for the key and loads the description with it.
"""

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import Response

_PAGE = (files("nebula_proxy.control") / "assets" / "docs.html").read_text(encoding="utf-8")


def _hash(tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    if found is None:
        raise RuntimeError(f"docs.html has no <{tag}>")
    return base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()


#: Only this script and this style, only calls to where the page came from, in nobody's frame.
_POLICY = (
    f"default-src 'none'; script-src 'sha256-{_hash('script')}'; style-src 'sha256-{_hash('style')}'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


def docs_page(status: int = 200) -> Response:
    return Response(
        _PAGE,
        status,
        {"content-security-policy": _POLICY, "referrer-policy": "no-referrer"},
        media_type="text/html; charset=utf-8",
    )
