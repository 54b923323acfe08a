--[[ revive.lua -- give dead letters another life.

KEYS   1 dead        aq:{queue}:dead
       2 index       aq:{queue}:index
       3 stats       aq:{queue}:stats:<minute>
       4.. lane      aq:{queue}:lane:<name>, then the bell of each

ARGV   1.. four for each: dead letter's entry id, id, job with its attempts reset, number of the lane in KEYS;
           at most 500

RETURNS     how many were revived; the others had been revived or purged by somebody else
INVARIANTS  a dead letter is revived once; crashes start again at 0
]]
local dead, index, stats = KEYS[1], KEYS[2], KEYS[3]
local lanes = (#KEYS - 3) / 2
redis.call('XLEN', dead)
redis.call('HLEN', index)
redis.call('HLEN', stats)
local rung, ring = {}, {}
for number = 4, 3 + lanes do
  redis.call('XLEN', KEYS[number])
  rung[number] = redis.call('LLEN', KEYS[number + lanes])
end
for i = 4, #ARGV, 4 do
  if not rung[tonumber(ARGV[i])] then return redis.error_reply('ERR no lane number ' .. ARGV[i]) end
end

local revived = 0
for i = 1, #ARGV, 4 do
  local letter, id, job, number = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local lane = KEYS[number]
  if redis.call('XDEL', dead, letter) == 1 then
    local entry = redis.call('XADD', lane, '*', 'id', id, 'job', job, 'crashes', '0')
    if id ~= '' then redis.call('HSET', index, id, string.match(lane, '}:lane:(.+)$') .. ' ' .. entry) end
    ring[number] = true
    revived = revived + 1
  end
end
if revived > 0 then
  for number in pairs(ring) do
    if rung[number] == 0 then redis.call('LPUSH', KEYS[number + lanes], '1') end
  end
  redis.call('HINCRBY', stats, 'revived', revived)
  redis.call('EXPIRE', stats, 86400)
end
return revived
