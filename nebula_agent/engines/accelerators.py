"""How an engine is told which GPUs are its own: one environment variable per maker."""

from collections.abc import Mapping, Sequence

#: Makers whose runtime counts by index; NVIDIA's takes UUIDs, which mean the same GPU after a reboot.
_BY_INDEX = {"ascend": "ASCEND_RT_VISIBLE_DEVICES", "huawei": "ASCEND_RT_VISIBLE_DEVICES", "amd": "HIP_VISIBLE_DEVICES"}


def visible_gpus(vendor: str, gpus: Sequence[str], indexes: Sequence[int]) -> Mapping[str, str]:
    """The environment that shows exactly these GPUs; none of them shows an engine on the CPU no GPU at all."""
    name = _BY_INDEX.get(vendor)
    if name is None or not gpus:
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return {name: ",".join(map(str, indexes))}
