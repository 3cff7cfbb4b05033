-- A leader's batch of placements, all or nothing, refused when a newer leader was ever granted an epoch.
-- KEYS: placements, revision, changes, epoch, lease
-- ARGV: epoch, entries to keep, holder ('': not looked at), then for each change: replica, 'put' | 'remove', value
-- Answers {'ok', revision} or {'fenced', highest epoch}.
local placements, revision_key, changes, epoch_key, lease = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local epoch = tonumber(ARGV[1])

local highest = tonumber(redis.call('GET', epoch_key) or '0')
if epoch < highest then
  return {'fenced', highest}
end
-- A store that was killed may have lost an epoch's last second and granted the same number again: the lease tells who has it.
local held_epoch, holder = string.match(redis.call('GET', lease) or '', '^(%d+):(.*)$')
if ARGV[3] ~= '' and held_epoch == ARGV[1] and holder ~= ARGV[3] then
  return {'fenced', highest}
end
-- A store that came back without its last second may have forgotten this epoch: it only ever rises.
if epoch > highest then
  redis.call('SET', epoch_key, ARGV[1])
end

local revision = tonumber(redis.call('GET', revision_key) or '0')
for at = 4, #ARGV, 3 do
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
