--[[ empty.lua -- remove jobs that wait in a lane or are scheduled for it. Running jobs stay.

KEYS   1 lane        aq:{queue}:lane:<name>
       2 index       aq:{queue}:index
       3 scheduled   aq:{queue}:scheduled
       4 parked      aq:{queue}:parked
       5 waiters     aq:{queue}:waiters
       6 progress    aq:{queue}:progress
       7 cancelled   aq:{queue}:cancelled

ARGV   1 how many at most, up to 500
       2 where to go on among scheduled jobs, 0 at first
       3 prefix of the channels on which endings are told

RETURNS     how many were removed; how many entries of scheduled have been seen, or -1 when all have
INVARIANTS  a delivered entry is not touched
]]
local lane, index, scheduled, parked = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local waiters, progress, cancelled = KEYS[5], KEYS[6], KEYS[7]
local limit, from, channel = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local name = string.match(lane, '}:lane:(.+)$')
redis.call('HLEN', index)
redis.call('ZCARD', scheduled)
redis.call('HLEN', parked)
redis.call('HLEN', progress)
redis.call('SCARD', waiters)
redis.call('SCARD', cancelled)

local function forget(id)
  redis.call('HDEL', index, id)
  redis.call('HDEL', progress, id)
  redis.call('SREM', cancelled, id)
  if redis.call('SREM', waiters, id) == 1 then redis.call('PUBLISH', channel .. id, '') end
end

local after = '-'
local groups = redis.pcall('XINFO', 'GROUPS', lane)
if not groups.err then
  for _, group in ipairs(groups) do
    local about = {}
    for i = 1, #group, 2 do about[group[i]] = group[i + 1] end
    if about.name == 'workers' then after = '(' .. about['last-delivered-id'] end
  end
end
local removed = 0
for _, entry in ipairs(redis.call('XRANGE', lane, after, '+', 'COUNT', limit)) do
  redis.call('XDEL', lane, entry[1])
  if entry[2][1] == 'id' then forget(entry[2][2]) end
  removed = removed + 1
end
if removed == limit then return {removed, from} end

local ids = redis.call('ZRANGE', scheduled, from, from + limit - 1)
local kept = 0
for _, id in ipairs(ids) do
  if string.match(redis.call('HGET', parked, id) or '', '^(%S+) ') == name then
    redis.call('ZREM', scheduled, id)
    redis.call('HDEL', parked, id)
    forget(id)
    removed = removed + 1
  else
    kept = kept + 1
  end
end
if #ids < limit then return {removed, -1} end
return {removed, from + kept}
