"""The simulated engine: behaves like vLLM 0.32.0 on the outside, computes nothing inside, and says so.

A real process with a real child, so that what the agent and the proxy do about engines (start, probe, scrape, stop,
kill, sweep) is done for real on machines without a GPU. Started as

    python -m nebula_agent.simulator --host 127.0.0.1 --port 8000 --served-model-name demo [options]
    nebula-agent simulate-engine     --host 127.0.0.1 --port 8000 --served-model-name demo [options]

It listens once ready (about 0.3 s), writes vLLM-like log lines to stdout, and announces itself as simulated in the
header `x-nebula-simulated: 1`, in `/version` (`"simulated": true`), in `owned_by`, and in `nebula_simulated_engine 1`.

    [MODEL] --host H --port N        port 0 takes a free one and prints it: "Starting simulated engine on http://H:N"
    --served-model-name NAME ...     the first is the `model_name` label; default "sim"
    --preset tiny|h100-8b|h100-70b|instant   times and KV blocks; --speed FACTOR makes the clock run faster
    --max-model-len --max-num-seqs --max-num-batched-tokens --block-size --num-gpu-blocks
    --[no-]enable-prefix-caching --max-num-queued-reqs --enable-auto-tool-choice --seed
    --runner generate|pooling        pooling serves /v1/embeddings, /v1/score, /v1/rerank and not chat
    --api-key-file FILE              or the environment's VLLM_API_KEY; guards /v1/* only
    --shutdown-timeout S             SIGTERM: 0 aborts what is in flight, S > 0 lets it finish first
    --death-exit-seconds S           from the death of the child to the exit of the parent; vLLM takes 7
    --dev-mode                       adds /reset_prefix_cache (or VLLM_SERVER_DEV_MODE=1)

Faults, each `--fault KIND[=ARG]`, repeatable; with `--allow-request-faults` also per request as the body's field
`"nebula_fault": "crash@5"` (crash, freeze, error; `@K` = when that request has K tokens):

    slow-start=S           the port refuses connections for S seconds
    failed-start=S         exit 1 after S seconds, with vLLM's last words
    crash-at-token=K       the child dies of SIGKILL once a request has K tokens
    freeze                 the engine never makes a step; /health stays 200, /metrics stands still
    freeze-at-token=K      the same, from the K-th token of a request on
    error-frame            200, then an error frame as first frame (500 when not streamed)
    error-frame-at-token=K the same in mid-stream
    sigterm-hang           SIGTERM closes the listener; open streams fall silent and the process stays
    orphan-child[=S]       the child outlives a killed parent and ignores SIGTERM; with S the parent dies after S seconds
    shm-leak               maps psm_* and sem.mp-* files in /dev/shm and never removes them
    scrape-slow=S          /metrics takes S seconds longer

A signal sent to the child by hand works as well: SIGKILL is a crash, SIGSTOP a freeze. The child's name in `/proc` is
`SIM::EngineCore`; it shares process group and session with its parent, as vLLM's does.

How the parts fit: `arguments` says what to be; `process` owns signals and lifetimes; `http_server` and `routes` speak
HTTP; one file per API (`chat`, `completions`, `responses`, `messages`, `embeddings`, `scoring`, `tokenize`) gives the
bodies; `client` is the parent's end of the pipe to the child, `core` the child: `scheduler` and `blocks` decide the
steps, `timing` how long one takes, `reply` which token comes next. `metrics` is what `/metrics` tells of it.
"""
