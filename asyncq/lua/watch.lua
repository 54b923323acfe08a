--[[ watch.lua -- say that somebody awaits these jobs, so that their endings are published.

KEYS   1 index       aq:{queue}:index
       2 waiters     aq:{queue}:waiters

ARGV   1.. ids, at most 500

RETURNS     for each id: 1 if its ending will be published, 0 if it has ended or is unknown
INVARIANTS  only live jobs have waiters, and every way to end removes them
]]
local index, waiters = KEYS[1], KEYS[2]
local reply = {}
for i, place in ipairs(redis.call('HMGET', index, unpack(ARGV))) do
  local live = place and string.sub(place, 1, 5) ~= 'dead '
  if live then redis.call('SADD', waiters, ARGV[i]) end
  reply[i] = live and 1 or 0
end
return reply
