--[[ enqueue.lua -- put a batch of jobs where workers will find them, exactly once.

KEYS   1 producer    aq:{queue}:producer:<id>
       2 index       aq:{queue}:index
       3 scheduled   aq:{queue}:scheduled
       4 parked      aq:{queue}:parked
       5 stats       aq:{queue}:stats:<minute>
       6.. lane      aq:{queue}:lane:<name>, then as many bells in the same order, then result and unique keys that routes point to

ARGV   1 sequence number of this push, rising with each push of the producer
       2 seconds the producer's last sequence number is remembered
       3 number of lanes
       4.. three for each job: route, id, job
           route is the number of the lane in KEYS, or for a job that is delayed or must be the only one
           `lane delay_ms result unique unique_ms`, where result and unique are numbers in KEYS or 0

RETURNS     for each job that was not accepted: its position (from 1) and the id of the job in its way
INVARIANTS  a push that is repeated (its reply was lost) changes nothing and returns what it returned;
            an accepted job is in the index and in exactly one of: a lane, scheduled;
            a uniqueness key holds for as long as its job is live, however that ends;
            nothing is written unless everything can be
]]
local producer, index, scheduled, parked = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local stats = KEYS[5]
local sequence, remember_s, lane_count = ARGV[1], ARGV[2], tonumber(ARGV[3])

local done = redis.call('GET', producer)
if done then
  local last, refused = string.match(done, '^(%d+)(.*)$')
  if tonumber(last) >= tonumber(sequence) then
    local reply = {}
    if last == sequence then
      for position, id in string.gmatch(refused, ' (%d+) (%S+)') do
        reply[#reply + 1] = tonumber(position)
        reply[#reply + 1] = id
      end
    end
    return reply
  end
end

-- Everything that can fail is asked first: a script that has written is not rolled back.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local head = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')
redis.call('HLEN', index)
redis.call('HLEN', parked)
redis.call('HLEN', stats)
local lanes, holders, rung, ring = {}, {}, {}, {}
local function holder(key)
  local id = redis.call('GET', key)
  local place = id and redis.call('HGET', index, id)
  return place and string.sub(place, 1, 5) ~= 'dead ' and id or nil
end
for i = 4, #ARGV, 3 do
  local route = ARGV[i]
  if not lanes[route] then
    local lane, delay, result, unique, unique_ms = string.match(route, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    local number = tonumber(lane or route)
    local key, bell = KEYS[number], KEYS[number + lane_count]
    redis.call('XLEN', key)
    rung[bell] = redis.call('LLEN', bell)
    lanes[route] = {
      key = key, bell = bell, name = string.match(key, '}:lane:(.+)$'), special = lane ~= nil, delay = tonumber(delay),
      result = tonumber(result), unique = KEYS[tonumber(unique or 0)], unique_ms = unique_ms,
    }
    local free = lanes[route].unique
    if free then holders[free] = holder(free) end
  end
end

local refused, accepted = {}, 0
local where = {}
for i = 4, #ARGV, 3 do
  local route, id, job = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local lane = lanes[route]
  local in_the_way = nil
  if lane.special then
    if lane.unique then in_the_way = holders[lane.unique] end
    if not in_the_way and lane.result > 0 then
      if redis.call('HEXISTS', index, id) == 1 or redis.call('EXISTS', KEYS[lane.result]) == 1 then
        in_the_way = id
      end
    end
  end
  if in_the_way then
    refused[#refused + 1] = (i - 4) / 3 + 1
    refused[#refused + 1] = in_the_way
  else
    local place
    if lane.special and lane.delay > 0 then
      local due = now + lane.delay
      redis.call('HSET', parked, id, lane.name .. ' 0 ' .. job)
      redis.call('ZADD', scheduled, due, id)
      place = 'scheduled'
      if not head[2] or due < tonumber(head[2]) then ring[lane.bell] = true end
    else
      place = lane.name .. ' ' .. redis.call('XADD', lane.key, '*', 'id', id, 'job', job, 'crashes', '0')
      ring[lane.bell] = true
    end
    if lane.special then
      -- At once, so that a second one in this very batch sees it.
      redis.call('HSET', index, id, place)
      if lane.unique then
        redis.call('SET', lane.unique, id, 'PX', lane.unique_ms)
        holders[lane.unique] = id
      end
    else
      where[#where + 1] = id
      where[#where + 1] = place
      if #where == 1000 then
        redis.call('HSET', index, unpack(where))
        where = {}
      end
    end
    accepted = accepted + 1
  end
end
if #where > 0 then redis.call('HSET', index, unpack(where)) end

for bell in pairs(ring) do
  if rung[bell] == 0 then redis.call('LPUSH', bell, '1') end
end
if accepted > 0 and redis.call('HINCRBY', stats, 'enqueued', accepted) == accepted then
  redis.call('EXPIRE', stats, 86400)
end
local remembered = sequence
if #refused > 0 then remembered = sequence .. ' ' .. table.concat(refused, ' ') end
redis.call('SET', producer, remembered, 'EX', remember_s)
return refused
