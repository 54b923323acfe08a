--[[ report.lua -- keep the last progress of jobs that are running, and tell whoever listens.

KEYS   1 index       aq:{queue}:index
       2 progress    aq:{queue}:progress

ARGV   1 prefix of the channels on which progress is told
       2.. two for each: id, progress bytes; at most 500

RETURNS     how many were live
INVARIANTS  progress is kept only for jobs in the index; every way to end removes it
]]
local index, progress = KEYS[1], KEYS[2]
local channel = ARGV[1]
local live = 0
for i = 2, #ARGV, 2 do
  local place = redis.call('HGET', index, ARGV[i])
  if place and string.sub(place, 1, 5) ~= 'dead ' then
    redis.call('HSET', progress, ARGV[i], ARGV[i + 1])
    redis.call('PUBLISH', channel .. ARGV[i], ARGV[i + 1])
    live = live + 1
  end
end
return live
