-- A store that lost its memory is given it anew, in one step: nobody ever reads half of it.
-- KEYS: meta, revision, epoch, nodes, then the hashes that are replaced as a whole
-- ARGV: incarnation, revision at which the plan was made, epoch of the leader, revision to rise above,
--       then for each record: the number of its hash (0 = nodes, which are only completed), id, value
-- Answers {'ok', revision}, {'fenced', highest epoch} or {'conflict', revision}.
local revision = tonumber(redis.call('GET', KEYS[2]) or '0')
if redis.call('HGET', KEYS[1], 'incarnation') ~= ARGV[1] or revision ~= tonumber(ARGV[2]) then
  return {'conflict', revision}
end
local epoch, highest = tonumber(ARGV[3]), tonumber(redis.call('GET', KEYS[3]) or '0')
if epoch < highest then
  return {'fenced', highest}
end
redis.call('SET', KEYS[3], ARGV[3])
for number = 5, #KEYS do
  redis.call('DEL', KEYS[number])
end
for at = 5, #ARGV, 3 do
  local number = tonumber(ARGV[at])
  if number == 0 then
    redis.call('HSETNX', KEYS[4], ARGV[at + 1], ARGV[at + 2])
  else
    redis.call('HSET', KEYS[4 + number], ARGV[at + 1], ARGV[at + 2])
  end
end
-- Above all that anybody has seen: readers find a gap and read everything anew.
revision = math.max(revision, tonumber(ARGV[4])) + 1
redis.call('SET', KEYS[2], string.format('%d', revision))
redis.call('HSET', KEYS[1], 'settled', '1')
redis.call('HDEL', KEYS[1], 'doubt', 'seen')
return {'ok', revision}
