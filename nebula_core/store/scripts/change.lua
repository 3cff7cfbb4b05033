-- One durable change: the hash, the revision and the `changes` stream move together or not at all.
-- KEYS: hash, revision, changes
-- ARGV: kind, id, operation ('put' | 'remove'), value, expected generation ('' = any, '0' = absent),
--       generation of a value that does not say, entries to keep
-- Answers {'ok', revision} or {'conflict', generation found; -1 absent; -2 unreadable}.
local hash, revision_key, changes = KEYS[1], KEYS[2], KEYS[3]
local kind, id, operation, value, expected = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local current = redis.call('HGET', hash, id)

if expected ~= '' then
  local generation = -1
  if current then
    local readable, record = pcall(cjson.decode, current)
    if readable and type(record) == 'table' then
      generation = tonumber(record['generation'] or ARGV[6]) or -2
    else
      generation = -2
    end
  end
  local wanted = tonumber(expected)
  if wanted == 0 then wanted = -1 end
  if generation ~= wanted then
    return {'conflict', generation}
  end
end

-- Saying again what stands there is no change: whoever repeats a call whose answer was lost disturbs nobody.
local same = (operation == 'put' and current == value) or (operation == 'remove' and not current)
if same then
  return {'ok', tonumber(redis.call('GET', revision_key) or '0')}
end

-- The stream first: should it refuse, the hash is untouched.
local revision = redis.call('INCR', revision_key)
local stamp = string.format('%d-0', revision)
if operation == 'put' then
  redis.call('XADD', changes, 'MAXLEN', '~', ARGV[7], stamp, 'kind', kind, 'id', id, 'value', value)
  redis.call('HSET', hash, id, value)
else
  redis.call('XADD', changes, 'MAXLEN', '~', ARGV[7], stamp, 'kind', kind, 'id', id)
  redis.call('HDEL', hash, id)
end
return {'ok', revision}
