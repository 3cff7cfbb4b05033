-- Only GET and PEXPIRE: a leader keeps its lease also in a store that is full (reliability, M11).
-- KEYS: lease
-- ARGV: 'epoch:holder', milliseconds
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
