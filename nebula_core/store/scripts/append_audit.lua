-- Appends when the last entry is still the one the writer chained to; several control processes may write.
-- KEYS: audit
-- ARGV: id of the last entry seen ('' = none), JSON, entries to keep
-- Answers the new id, or false: read the last one again.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local id = ''
if #last > 0 then id = last[1][1] end
if id ~= ARGV[1] then
  return false
end
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'json', ARGV[2])
