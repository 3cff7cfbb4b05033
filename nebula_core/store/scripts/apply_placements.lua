-- A leader's batch of placements, all or nothing, refused when a newer leader was ever granted an epoch.
-- KEYS: placements, revision, changes, epoch
-- ARGV: epoch, entries to keep, then for each change: replica, 'put' | 'remove', value
-- Answers {'ok', revision} or {'fenced', highest epoch}.
local placements, revision_key, changes, epoch_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch = tonumber(ARGV[1])

local highest = tonumber(redis.call('GET', epoch_key) or '0')
if epoch < highest then
  return {'fenced', highest}
end
-- A store that came back without its last second may have forgotten this epoch: it only ever rises.
if epoch > highest then
  redis.call('SET', epoch_key, ARGV[1])
end

local revision = tonumber(redis.call('GET', revision_key) or '0')
for at = 3, #ARGV, 3 do
  local replica, operation, value = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local current = redis.call('HGET', placements, replica)
  if operation == 'put' and current ~= value then
    revision = redis.call('INCR', revision_key)
    redis.call('XADD', changes, 'MAXLEN', '~', ARGV[2], string.format('%d-0', revision),
      'kind', 'placement', 'id', replica, 'value', value)
    redis.call('HSET', placements, replica, value)
  elseif operation == 'remove' and current then
    revision = redis.call('INCR', revision_key)
    redis.call('XADD', changes, 'MAXLEN', '~', ARGV[2], string.format('%d-0', revision),
      'kind', 'placement', 'id', replica)
    redis.call('HDEL', placements, replica)
  end
end
return {'ok', revision}
