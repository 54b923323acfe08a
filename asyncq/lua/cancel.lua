--[[ cancel.lua -- end a job that has not begun; ask the worker of one that has.

KEYS   1 index       aq:{queue}:index
       2 scheduled   aq:{queue}:scheduled
       3 parked      aq:{queue}:parked
       4 waiters     aq:{queue}:waiters
       5 stats       aq:{queue}:stats:<minute>
       6 cancelled   aq:{queue}:cancelled
       7 result      aq:{queue}:result:<id>
       8 progress    aq:{queue}:progress
       9.. lane      aq:{queue}:lane:<name>

ARGV   1 id
       2 result bytes that say cancelled    3 ttl_ms of them, 0 to keep none
       4 prefix of the channels on which endings are told
       5 channel on which workers listen

RETURNS     'cancelled' (it will not run), 'running' (its worker was told), 'dead', or '' (ended or unknown)
INVARIANTS  a job that a worker holds is ended by that worker alone; the request is kept until it has ended
]]
local index, scheduled, parked, waiters = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local stats, cancelled, result, progress = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local id, ending, ttl_ms, channel, control = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local place = redis.call('HGET', index, id)
if not place then return '' end
redis.call('ZCARD', scheduled)
redis.call('HLEN', parked)
redis.call('HLEN', stats)
redis.call('HLEN', progress)
redis.call('SCARD', waiters)
redis.call('SCARD', cancelled)

local name, entry = string.match(place, '^(%S+) (%S+)$')
if name == 'dead' then return 'dead' end
if name then
  local lane
  for i = 9, #KEYS do
    if string.match(KEYS[i], '}:lane:(.+)$') == name then lane = KEYS[i] end
  end
  if not lane then return redis.error_reply('ERR lane ' .. name .. ' of the job is not among the lanes of the queue') end
  local held = redis.pcall('XPENDING', lane, 'workers', entry, entry, '1')
  if not held.err and #held > 0 then
    redis.call('SADD', cancelled, id)
    redis.call('PUBLISH', control, 'cancel ' .. id)
    return 'running'
  end
  redis.call('XDEL', lane, entry)
else
  redis.call('ZREM', scheduled, id)
  redis.call('HDEL', parked, id)
end
redis.call('HDEL', index, id)
redis.call('HDEL', progress, id)
redis.call('SREM', cancelled, id)
if ttl_ms ~= '0' then redis.call('SET', result, ending, 'PX', ttl_ms) end
if redis.call('SREM', waiters, id) == 1 then redis.call('PUBLISH', channel .. id, ending) end
redis.call('HINCRBY', stats, 'cancelled', 1)
redis.call('EXPIRE', stats, 86400)
return 'cancelled'
