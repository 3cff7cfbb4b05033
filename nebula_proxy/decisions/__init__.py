"""What the data plane decides, as functions of plain values: framing, candidates, routing, admission, retry, ejection."""
