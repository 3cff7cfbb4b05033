-- Budgets of keys, leased to workers in slices. One call settles and renews the slices of one worker for several keys.
-- KEYS: limits of each key
-- ARGV: worker, milliseconds of the lease, then for each key:
--   requests a minute, tokens a minute, streams (each 0 = no limit),
--   spent, kept, wanted of requests; spent, kept, wanted of tokens; open, wanted of streams
-- Hash of a key: 'requests', 'tokens' (what is left in the bucket), 'at' (milliseconds of that), and for each worker
--   'w:<name>' = granted and spent requests, granted and spent tokens, streams, end of its lease.
-- Granted and spent are counted from the worker's start, so a call that is repeated or whose answer is lost takes nothing twice.
-- Answers for each key: granted requests, granted tokens, streams, then what is left of each for anybody.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local worker, lease = 'w:' .. ARGV[1], tonumber(ARGV[2])
local replies = {}
local position = 2

local function argument()
  position = position + 1
  return tonumber(ARGV[position])
end

-- The bucket after refill and settlement, and the grant on top of what the worker keeps.
local function take(stored, limit, since, others, granted, spent, kept, wanted)
  if limit == 0 then
    return 0, spent + kept, 0
  end
  local left = stored and (stored + since * limit / 60000) or limit
  if granted then
    -- What it has neither spent nor kept it gives back; what it spent beyond its grant it owes.
    left = left + granted - spent - kept
  end
  left = math.min(left, limit - others - kept)
  local grant = math.max(0, math.min(wanted - kept, math.floor(left)))
  return left - grant, spent + kept + grant, math.floor(left - grant)
end

for index, key in ipairs(KEYS) do
  local request_limit, token_limit, stream_limit = argument(), argument(), argument()
  local spent_requests, kept_requests, wanted_requests = argument(), argument(), argument()
  local spent_tokens, kept_tokens, wanted_tokens = argument(), argument(), argument()
  local open, wanted_streams = argument(), argument()

  local stored = redis.call('HGETALL', key)
  local requests, tokens, at = nil, nil, now
  local own = nil
  local other_requests, other_tokens, other_streams = 0, 0, 0
  for field = 1, #stored, 2 do
    local name, value = stored[field], stored[field + 1]
    if name == 'requests' then
      requests = tonumber(value)
    elseif name == 'tokens' then
      tokens = tonumber(value)
    elseif name == 'at' then
      at = tonumber(value)
    else
      local gr, sr, gt, st, streams, ends = string.match(value, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
      if ends == nil or tonumber(ends) <= now then
        -- Nobody knows how much of its slice it has spent: that comes back with time.
        redis.call('HDEL', key, name)
      elseif name == worker then
        own = { requests = tonumber(gr), tokens = tonumber(gt) }
      else
        other_requests = other_requests + math.max(0, tonumber(gr) - tonumber(sr))
        other_tokens = other_tokens + math.max(0, tonumber(gt) - tonumber(st))
        other_streams = other_streams + tonumber(streams)
      end
    end
  end

  local since = math.max(0, now - at)
  local granted_requests, granted_tokens, requests_left, tokens_left
  requests, granted_requests, requests_left = take(requests, request_limit, since, other_requests,
    own and own.requests, spent_requests, kept_requests, wanted_requests)
  tokens, granted_tokens, tokens_left = take(tokens, token_limit, since, other_tokens,
    own and own.tokens, spent_tokens, kept_tokens, wanted_tokens)
  local streams, streams_left = open, 0
  if stream_limit > 0 then
    streams = math.max(open, math.min(wanted_streams, stream_limit - other_streams))
    streams_left = math.max(0, stream_limit - other_streams - streams)
  end

  redis.call('HSET', key, 'requests', string.format('%.3f', requests), 'tokens', string.format('%.3f', tokens),
    'at', string.format('%d', now),
    worker, string.format('%d %d %d %d %d %d', granted_requests, spent_requests, granted_tokens, spent_tokens, streams, now + lease))
  -- Kept until every bucket would be full again: from then on a new one says the same.
  local empty = 1
  if request_limit > 0 then
    empty = math.max(empty, (request_limit - requests) / request_limit)
  end
  if token_limit > 0 then
    empty = math.max(empty, (token_limit - tokens) / token_limit)
  end
  redis.call('PEXPIRE', key, string.format('%d', math.ceil(empty * 60000) + lease))
  replies[index] = { granted_requests, granted_tokens, streams, requests_left, tokens_left, streams_left }
end
return replies
