--[[ renew.lua -- keep the leases of deliveries that are still running.

KEYS   1 lane        aq:{queue}:lane:<name>

ARGV   1 consumer
       2.. entry ids, at most 500

RETURNS     the entry ids that are still ours; the others were reclaimed
INVARIANTS  a reclaimed job lives under a new entry id, so this cannot take it back
]]
local lane, consumer = KEYS[1], ARGV[1]
local entries = {}
for i = 2, #ARGV do entries[i - 1] = ARGV[i] end
entries[#entries + 1] = 'JUSTID'

local held = redis.pcall('XCLAIM', lane, 'workers', consumer, '0', unpack(entries))
-- A group that is gone with its stream holds nothing of ours.
if held.err and string.find(held.err, 'NOGROUP', 1, true) then return {} end
return held
