-- Somebody remembers more than this store holds: said in the store, for all who read it, until it is settled.
-- KEYS: meta, revision
-- ARGV: incarnation that was read, 'emptied' | 'stale', highest revision ever seen
-- Answers 1, or 0 when it has been settled in the meantime.
if redis.call('HGET', KEYS[1], 'incarnation') ~= ARGV[1] then
  return 0
end
local seen = tonumber(ARGV[3])
if redis.call('HEXISTS', KEYS[1], 'doubt') == 0 then
  if ARGV[2] == 'emptied' and redis.call('HGET', KEYS[1], 'settled') == '1' then
    return 0
  end
  if ARGV[2] == 'stale' and tonumber(redis.call('GET', KEYS[2]) or '0') >= seen then
    return 0
  end
  redis.call('HSET', KEYS[1], 'doubt', ARGV[2])
end
if seen > tonumber(redis.call('HGET', KEYS[1], 'seen') or '0') then
  redis.call('HSET', KEYS[1], 'seen', ARGV[3])
end
return 1
