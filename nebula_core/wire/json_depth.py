"""How deep a JSON text is nested, counted without decoding it: bytes in, a yes or no out.

**Theory.** Depth only needs the brackets that are not inside strings. They are found with whole-text operations of
`bytes` (a quarter of a nanosecond per byte each) instead of a loop over tokens (300 ns per token):

1. A text with at most `limit` opening brackets, those in strings included, cannot be deeper than `limit`. Nearly every
   request ends here, at the speed of `memchr`: 8 MiB of prompt in a millisecond.
2. Escapes go, then everything but brackets and quotes; both kinds of brackets become one. A string without brackets is
   now `""`, and all of those go too: taking away two neighbouring quotes never changes which side of a string a bracket
   is on. What is left of the strings is cut out at its quotes.
3. Each round of taking away all `[]` takes away the innermost level, so the rounds are the depth.

The text must be valid JSON; of any other the answer means nothing.
"""

_BRACKETS = b"[]{}"
_NEITHER = bytes(byte for byte in range(256) if byte not in _BRACKETS and byte != 0x22)
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def is_deeper(text: bytes, limit: int) -> bool:
    """Whether arrays and objects in this JSON text stand in each other more than `limit` deep."""
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = text.translate(_ONE_KIND, _NEITHER).replace(b'""', b"")
    if b'"' in left:
        left = b"".join(left.split(b'"')[::2])
    for _ in range(limit):
        if not left:
            return False
        left = left.replace(b"[]", b"")
    return bool(left)
