"""How long a step of the simulated engine takes, and how much cache it has: a + b x decodes + c x prompt tokens."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One kind of engine. Seconds per step, per decoding request in it, per prompt token in it; blocks of the cache."""

    base_seconds: float
    decode_seconds: float
    prefill_seconds: float
    block_size: int
    num_blocks: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    kv_bytes_per_token: int

    def step_seconds(self, decode_requests: int, prefill_tokens: int) -> float:
        return self.base_seconds + self.decode_seconds * decode_requests + self.prefill_seconds * prefill_tokens


PRESETS = {
    # Fitted to the sweep of vLLM 0.32.0 with a tiny model on 2 shared cores: 3.1 ms per token at batch 1, 9.1 at 32;
    # 40 ms for a prompt of 1510 tokens.
    "tiny": Preset(
        base_seconds=0.003,
        decode_seconds=0.0002,
        prefill_seconds=0.000025,
        block_size=128,
        num_blocks=16384,
        max_num_batched_tokens=2048,
        max_num_seqs=128,
        max_model_len=2048,
        kv_bytes_per_token=512,
    ),
    # From the documentation of llm-d-inference-sim (7-8B on one H100: 10-15 ms between tokens, prompts 0.15-0.30 ms per
    # token), not measured here. Cache: 0.9 x 80 GB less 16 GB of weights, at 128 KiB per token.
    "h100-8b": Preset(
        base_seconds=0.010,
        decode_seconds=0.00006,
        prefill_seconds=0.0002,
        block_size=16,
        num_blocks=26700,
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        max_model_len=32768,
        kv_bytes_per_token=131072,
    ),
    # The same source, 70B on four H100: 25-40 ms between tokens, prompts 0.6-0.9 ms per token; 320 KiB per token.
    "h100-70b": Preset(
        base_seconds=0.025,
        decode_seconds=0.00012,
        prefill_seconds=0.0007,
        block_size=16,
        num_blocks=28200,
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        max_model_len=32768,
        kv_bytes_per_token=327680,
    ),
    # No time at all passes in a step: for tests that want the order of things and not their pace.
    "instant": Preset(
        base_seconds=0.0,
        decode_seconds=0.0,
        prefill_seconds=0.0,
        block_size=16,
        num_blocks=4096,
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        max_model_len=8192,
        kv_bytes_per_token=131072,
    ),
}
