-- The lease says who may act now, the epoch says who may write: both are granted in one step.
-- KEYS: lease, epoch
-- ARGV: holder, milliseconds, epoch to stay above
-- Answers the new epoch, or false while somebody else holds the lease.
local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^%d+:(.*)$') ~= ARGV[1] then
  return false
end
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[3])) + 1
redis.call('SET', KEYS[2], string.format('%d', epoch))
redis.call('SET', KEYS[1], string.format('%d:%s', epoch, ARGV[1]), 'PX', ARGV[2])
return epoch
