--[[ reclaim.lua -- take back jobs whose worker has let its lease run out.

KEYS   1 lane        aq:{queue}:lane:<name>
       2 index       aq:{queue}:index
       3 dead        aq:{queue}:dead
       4 bell        aq:{queue}:bell:<lane>
       5 stats       aq:{queue}:stats:<minute>
       6 waiters     aq:{queue}:waiters
       7 progress    aq:{queue}:progress
       8 cancelled   aq:{queue}:cancelled
       9 trials      aq:{queue}:trials

ARGV   1 consumer that takes them back
       2 lease_ms: idle for longer is lost
       3 cursor from the last call, 0-0 at first
       4 how many at most, up to 500; ten times as many are looked at
       5 crashes at which a job is poison
       6 prefix of the channels on which endings are told

RETURNS     the cursor for the next call (0-0: the lane has been seen whole); how many went back to the lane;
            how many were buried
INVARIANTS  the old entry is acknowledged, deleted and added again under a new id in one step, so whoever
            held it holds nothing; a crash is counted apart from attempts; bounded by the count
]]
local lane, index, dead, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local stats, waiters, progress, cancelled, trials = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local consumer, lease_ms, cursor, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local poison, channel = tonumber(ARGV[5]), ARGV[6]

redis.call('HLEN', index)
redis.call('XLEN', dead)
redis.call('HLEN', stats)
redis.call('HLEN', progress)
redis.call('SCARD', cancelled)
redis.call('SCARD', waiters)
redis.call('SCARD', trials)
local rung = redis.call('LLEN', bell)
local name = string.match(lane, '}:lane:(.+)$')

local found = redis.pcall('XAUTOCLAIM', lane, 'workers', consumer, lease_ms, cursor, 'COUNT', count)
if found.err then
  if string.find(found.err, 'NOGROUP', 1, true) then return {'0-0', 0, 0} end
  return found
end

local back, buried, where = 0, 0, {}
for _, entry in ipairs(found[2]) do
  local old, fields = entry[1], entry[2]
  if redis.call('XACK', lane, 'workers', old) == 1 then
    redis.call('XDEL', lane, old)
    local known = fields[1] == 'id' and fields[2] ~= '' and fields[3] == 'job' and fields[5] == 'crashes'
    local id = known and fields[2] or ''
    local job = known and fields[4] or table.concat(fields, ' ')
    local crashes = (known and tonumber(fields[6]) or 0) + 1
    -- Beyond the limit it is buried only if it ran alone: otherwise another job may have killed the worker.
    local alone = redis.call('SREM', trials, id) == 1
    if known and (crashes < poison or not (alone or poison == 1 or crashes >= poison * 5)) then
      local new = redis.call('XADD', lane, '*', 'id', id, 'job', job, 'crashes', crashes)
      where[#where + 1] = id
      where[#where + 1] = name .. ' ' .. new
      back = back + 1
    else
      local reason, text = 'poison', 'its worker crashed or was lost ' .. crashes .. ' times while running it'
      if not known then reason, text = 'undecodable', 'an entry that asyncq did not write' end
      local letter = redis.call('XADD', dead, '*', 'id', id, 'lane', name, 'job', job, 'reason', reason,
        'error', text, 'traceback', '', 'attempts', '', 'crashes', crashes, 'worker', '')
      if id ~= '' then
        redis.call('HSET', index, id, 'dead ' .. letter)
        redis.call('HDEL', progress, id)
        redis.call('SREM', cancelled, id)
        if redis.call('SREM', waiters, id) == 1 then redis.call('PUBLISH', channel .. id, '') end
      end
      buried = buried + 1
    end
  end
end

if #where > 0 then redis.call('HSET', index, unpack(where)) end
if back > 0 and rung == 0 then redis.call('LPUSH', bell, '1') end
if back + buried > 0 then
  redis.call('HINCRBY', stats, 'crashed', back + buried)
  if buried > 0 then redis.call('HINCRBY', stats, 'dead', buried) end
  redis.call('EXPIRE', stats, 86400)
end
return {found[1], back, buried}
