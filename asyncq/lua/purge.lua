--[[ purge.lua -- forget dead letters for good.

KEYS   1 dead        aq:{queue}:dead
       2 index       aq:{queue}:index

ARGV   1.. two for each: dead letter's entry id, id; at most 500

RETURNS     how many were forgotten; the others had been revived or purged by somebody else
INVARIANTS  a job that was revived meanwhile is left alone
]]
local dead, index = KEYS[1], KEYS[2]
redis.call('HLEN', index)
local purged = 0
for i = 1, #ARGV, 2 do
  if redis.call('XDEL', dead, ARGV[i]) == 1 then
    redis.call('HDEL', index, ARGV[i + 1])
    purged = purged + 1
  end
end
return purged
