--[[ promote.lua -- move scheduled jobs that are due to their lanes.

KEYS   1 scheduled   aq:{queue}:scheduled
       2 parked      aq:{queue}:parked
       3 index       aq:{queue}:index
       4.. lane      aq:{queue}:lane:<name>, then the bell of each

ARGV   1 how many at most, up to 500
       2 number in KEYS of the lane for jobs whose own lane is no longer among them

RETURNS     how many were moved; ms until the next is due (0: more are due now), or -1
INVARIANTS  due is judged by the server's clock; a job is in scheduled or in a lane, never both;
            several callers at once are harmless, the first one moves and the rest find nothing
]]
local scheduled, parked, index = KEYS[1], KEYS[2], KEYS[3]
local limit, fallback = ARGV[1], KEYS[tonumber(ARGV[2])]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', scheduled, '-inf', now, 'LIMIT', '0', limit)
if #due > 0 then
  redis.call('HLEN', index)
  local lanes, bells, rung, ring = {}, {}, {}, {}
  local count = (#KEYS - 3) / 2
  for i = 4, 3 + count do
    redis.call('XLEN', KEYS[i])
    lanes[string.match(KEYS[i], '}:lane:(.+)$')] = KEYS[i]
    bells[KEYS[i]] = KEYS[i + count]
    rung[KEYS[i]] = redis.call('LLEN', KEYS[i + count])
  end
  local jobs = redis.call('HMGET', parked, unpack(due))
  local where = {}
  for i, id in ipairs(due) do
    if not jobs[i] then
      redis.call('HDEL', index, id)
    else
      local name, crashes, job = string.match(jobs[i], '^(%S+) (%d+) (.*)$')
      -- What we did not write is a worker's to bury.
      if not job then crashes, job = '0', jobs[i] end
      local lane = lanes[name] or fallback
      ring[lane] = true
      local entry = redis.call('XADD', lane, '*', 'id', id, 'job', job, 'crashes', crashes)
      where[#where + 1] = id
      where[#where + 1] = string.match(lane, '}:lane:(.+)$') .. ' ' .. entry
    end
  end
  if #where > 0 then redis.call('HSET', index, unpack(where)) end
  redis.call('ZREM', scheduled, unpack(due))
  redis.call('HDEL', parked, unpack(due))
  for lane in pairs(ring) do
    if rung[lane] == 0 then redis.call('LPUSH', bells[lane], '1') end
  end
end

local next_due = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')
if not next_due[2] then return {#due, -1} end
return {#due, math.max(0, tonumber(next_due[2]) - now)}
