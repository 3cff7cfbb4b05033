"""One door per outside system: processes, files, ports, engines over HTTP, NVML, the host. No policy in any of them."""
