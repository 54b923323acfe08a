--[[ retire.lua -- take a worker that is gone off the books.

KEYS   1 workers     aq:{queue}:workers
       2 paused      aq:{queue}:paused
       3.. lane      aq:{queue}:lane:<name>

ARGV   1 consumer

RETURNS     how many deliveries it still holds; it is forgotten only at 0
INVARIANTS  a consumer with deliveries is never deleted: they would be lost in the stream, in nobody's list
]]
local workers, paused = KEYS[1], KEYS[2]
local consumer = ARGV[1]
local held = 0
for i = 3, #KEYS do
  local pending = redis.pcall('XPENDING', KEYS[i], 'workers', '-', '+', '1', consumer)
  if pending.err then
    -- No group, no consumer.
  elseif #pending > 0 then
    held = held + 1
  else
    redis.call('XGROUP', 'DELCONSUMER', KEYS[i], 'workers', consumer)
  end
end
if held == 0 then
  redis.call('SREM', paused, consumer)
  redis.call('HDEL', workers, consumer)
end
return held
