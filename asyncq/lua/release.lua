--[[ release.lua -- hand back entries that this worker holds but will not run.

KEYS   1 lane        aq:{queue}:lane:<name>
       2 index       aq:{queue}:index
       3 bell        aq:{queue}:bell:<lane>
       4 trials      aq:{queue}:trials

ARGV   1.. entry ids, at most 500

RETURNS     how many were handed back; the others were not ours any more
INVARIANTS  neither an attempt nor a crash is counted; the job is under a new entry id, so nobody still holds it
]]
local lane, index, bell, trials = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local rung = redis.call('LLEN', bell)
redis.call('HLEN', index)
local some_trials = redis.call('SCARD', trials) > 0
local name = string.match(lane, '}:lane:(.+)$')

local old, where = {}, {}
for i = 1, #ARGV do
  local entry = redis.call('XRANGE', lane, ARGV[i], ARGV[i])[1]
  if redis.call('XACK', lane, 'workers', ARGV[i]) == 1 and entry then
    old[#old + 1] = ARGV[i]
    local fields = entry[2]
    local known = fields[1] == 'id' and fields[2] ~= '' and fields[3] == 'job' and fields[5] == 'crashes'
    if not known then fields = {'id', '', 'job', table.concat(fields, ' '), 'crashes', '0'} end
    local new = redis.call('XADD', lane, '*', unpack(fields, 1, 6))
    if known then
      if some_trials then redis.call('SREM', trials, fields[2]) end
      where[#where + 1] = fields[2]
      where[#where + 1] = name .. ' ' .. new
    end
  end
end
if #old > 0 then redis.call('XDEL', lane, unpack(old)) end
if #where > 0 then redis.call('HSET', index, unpack(where)) end
if #old > 0 and rung == 0 then redis.call('LPUSH', bell, '1') end
return #old
