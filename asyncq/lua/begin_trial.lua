--[[ begin_trial.lua -- note that a job is about to run on trial: if its worker is lost now, the job itself is to blame.

KEYS   1 lane        aq:{queue}:lane:<name>
       2 trials      aq:{queue}:trials

ARGV   1 consumer    2 entry id    3 id

RETURNS     1 if it is noted, 0 if the delivery is not the consumer's any more
INVARIANTS  only a job that is held is on trial; every way to end or to hand it back ends the trial
]]
local lane, trials = KEYS[1], KEYS[2]
local consumer, entry, id = ARGV[1], ARGV[2], ARGV[3]
local held = redis.pcall('XPENDING', lane, 'workers', entry, entry, '1', consumer)
if held.err and not string.find(held.err, 'NOGROUP', 1, true) then return held end
if held.err or #held == 0 then return 0 end
redis.call('SADD', trials, id)
return 1
