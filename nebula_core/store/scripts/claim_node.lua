-- One agent per node: granted when nobody holds it, renewed for its holder, handed over from a holder known dead.
-- KEYS: agent
-- ARGV: claim, milliseconds, claim that may be replaced ('' = none)
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
if not held or (ARGV[3] ~= '' and held == ARGV[3]) then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
