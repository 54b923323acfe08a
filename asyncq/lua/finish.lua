--[[ finish.lua -- record what became of a batch of jobs, and only then take them off their lanes.

KEYS   1 index       aq:{queue}:index
       2 scheduled   aq:{queue}:scheduled
       3 parked      aq:{queue}:parked
       4 dead        aq:{queue}:dead
       5 stats       aq:{queue}:stats:<minute>
       6 waiters     aq:{queue}:waiters
       7 progress    aq:{queue}:progress
       8 cancelled   aq:{queue}:cancelled
       9 trials      aq:{queue}:trials
       10.. lane     aq:{queue}:lane:<name>, then result and unique keys, to which arguments point

ARGV   1 prefix of the channels on which endings are told
       2 number of jobs that ended with a result; 3 of retries; 4 of dead letters; all together at most 500
       5.. for each that ended, seven: lane, entry id, id, state, result bytes, number of the result key or 0, ttl_ms
           for each retry, six:       lane, entry id, id, job, delay_ms, crashes
           for each dead letter, ten: lane, entry id, id, job, reason, error, traceback, attempts, crashes, worker
           for each uniqueness key held by one of these, two: number of the key, id
           (lane is a number in KEYS)

RETURNS     lane and entry id of each delivery we no longer held; nothing was done about it
INVARIANTS  the acknowledgement is the commit token: a job that was reclaimed lives under a new entry id,
            so a stale worker can neither finish, retry nor bury it; each delivery commits at most once.
            XACK comes first, so endings are recorded even when the server is out of memory
]]
local index, scheduled, parked, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local stats, waiters, progress, cancelled, trials = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local channel = ARGV[1]
local n_ended, n_retried, n_dead = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local retries = 5 + n_ended * 7
local letters = retries + n_retried * 6
local uniques = letters + n_dead * 10

-- Everything that can fail is asked before the first write.
local holders = {}
for i = uniques, #ARGV, 2 do holders[i] = redis.call('GET', KEYS[tonumber(ARGV[i])]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HLEN', index)
redis.call('HLEN', stats)
local some_progress = redis.call('HLEN', progress) > 0
local some_cancelled = redis.call('SCARD', cancelled) > 0
local some_waiting = redis.call('SCARD', waiters) > 0
local some_trials = redis.call('SCARD', trials) > 0
if n_retried > 0 then
  redis.call('ZCARD', scheduled)
  redis.call('HLEN', parked)
end
if n_dead > 0 then redis.call('XLEN', dead) end

local by_lane, order = {}, {}
local function gather(first, last, stride)
  for i = first, last, stride do
    local entries = by_lane[ARGV[i]]
    if not entries then
      entries = {}
      by_lane[ARGV[i]] = entries
      order[#order + 1] = ARGV[i]
      redis.call('XLEN', KEYS[tonumber(ARGV[i])])
    end
    entries[#entries + 1] = ARGV[i + 1]
  end
end
gather(5, retries - 1, 7)
gather(retries, letters - 1, 6)
gather(letters, uniques - 1, 10)

-- One XACK for each lane. When it counts them all, all were ours; otherwise the entry itself tells:
-- whoever reclaimed a job deleted its old entry with it. Each entry is good for one ending.
local doubtful = {}
for _, number in ipairs(order) do
  local lane, entries = KEYS[tonumber(number)], by_lane[number]
  if redis.call('XACK', lane, 'workers', unpack(entries)) == #entries then
    redis.call('XDEL', lane, unpack(entries))
  else
    local ours = {}
    doubtful[number] = ours
    for _, entry in ipairs(entries) do
      if redis.call('XDEL', lane, entry) == 1 then ours[entry] = true end
    end
  end
end

local lost, elsewhere = {}, {}
local function ours(i)
  local left = doubtful[ARGV[i]]
  if not left then return true end
  if left[ARGV[i + 1]] then
    left[ARGV[i + 1]] = nil
    return true
  end
  lost[#lost + 1] = ARGV[i]
  lost[#lost + 1] = ARGV[i + 1]
  elsewhere[ARGV[i + 2]] = true
  return false
end

local counts, gone, told, moved, buried = {}, {}, {}, {}, {}
for i = 5, retries - 1, 7 do
  if ours(i) then
    local id, state = ARGV[i + 2], ARGV[i + 3]
    gone[#gone + 1] = id
    counts[state] = (counts[state] or 0) + 1
    local key = ARGV[i + 5]
    if key ~= '0' then redis.call('SET', KEYS[tonumber(key)], ARGV[i + 4], 'PX', ARGV[i + 6]) end
    if some_waiting then told[id] = ARGV[i + 4] end
  end
end
for i = retries, letters - 1, 6 do
  if ours(i) then
    local id = ARGV[i + 2]
    local lane = string.match(KEYS[tonumber(ARGV[i])], '}:lane:(.+)$')
    redis.call('HSET', parked, id, lane .. ' ' .. ARGV[i + 5] .. ' ' .. ARGV[i + 3])
    redis.call('ZADD', scheduled, now + tonumber(ARGV[i + 4]), id)
    moved[#moved + 1] = id
    moved[#moved + 1] = 'scheduled'
    if some_progress then redis.call('HDEL', progress, id) end
    if some_trials then redis.call('SREM', trials, id) end
    counts.retried = (counts.retried or 0) + 1
  end
end
for i = letters, uniques - 1, 10 do
  if ours(i) then
    local id = ARGV[i + 2]
    local lane = string.match(KEYS[tonumber(ARGV[i])], '}:lane:(.+)$')
    local letter = redis.call('XADD', dead, '*', 'id', id, 'lane', lane, 'job', ARGV[i + 3],
      'reason', ARGV[i + 4], 'error', ARGV[i + 5], 'traceback', ARGV[i + 6],
      'attempts', ARGV[i + 7], 'crashes', ARGV[i + 8], 'worker', ARGV[i + 9])
    if id ~= '' then
      moved[#moved + 1] = id
      moved[#moved + 1] = 'dead ' .. letter
      buried[#buried + 1] = id
      if some_waiting then told[id] = '' end
    end
    counts.dead = (counts.dead or 0) + 1
  end
end
if #gone > 0 then redis.call('HDEL', index, unpack(gone)) end
if #moved > 0 then redis.call('HSET', index, unpack(moved)) end

for i = uniques, #ARGV, 2 do
  local id = ARGV[i + 1]
  if not elsewhere[id] and holders[i] == id then redis.call('DEL', KEYS[tonumber(ARGV[i])]) end
end
if some_progress or some_cancelled or some_trials then
  -- A wish to cancel outlives a retry: the next run is stopped by it.
  for _, id in ipairs(buried) do gone[#gone + 1] = id end
  if #gone > 0 then
    redis.call('HDEL', progress, unpack(gone))
    redis.call('SREM', cancelled, unpack(gone))
    redis.call('SREM', trials, unpack(gone))
  end
end
if some_waiting then
  for id, ending in pairs(told) do
    if redis.call('SREM', waiters, id) == 1 then redis.call('PUBLISH', channel .. id, ending) end
  end
end
for name, count in pairs(counts) do
  if redis.call('HINCRBY', stats, name, count) == count then redis.call('EXPIRE', stats, 86400) end
end
return lost
