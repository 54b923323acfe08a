--[[ look.lua -- where one job is, in one consistent glance. Writes nothing.

KEYS   1 index       aq:{queue}:index
       2 result      aq:{queue}:result:<id>
       3 scheduled   aq:{queue}:scheduled
       4 parked      aq:{queue}:parked
       5 dead        aq:{queue}:dead
       6 progress    aq:{queue}:progress
       7.. lane      aq:{queue}:lane:<name>

ARGV   1 id

RETURNS     {} unknown; or
            'ended', result bytes
            'scheduled', lane, crashes, job, due in ms since the epoch, progress
            'queued', lane, crashes, job, entry id, progress
            'running', lane, crashes, job, entry id, progress, consumer, ms since its lease was renewed
            'dead', entry id, fields of the dead letter
INVARIANTS  a job is in one place
]]
local index, result, scheduled, parked = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local dead, progress = KEYS[5], KEYS[6]
local id = ARGV[1]

local place = redis.call('HGET', index, id)
if not place then
  local ending = redis.call('GET', result)
  if ending then return {'ended', ending} end
  return {}
end
local reported = redis.call('HGET', progress, id) or ''
if place == 'scheduled' then
  local name, crashes, job = string.match(redis.call('HGET', parked, id) or '', '^(%S+) (%d+) (.*)$')
  return {'scheduled', name or '', crashes or '0', job or '', redis.call('ZSCORE', scheduled, id) or '0', reported}
end

local name, entry = string.match(place, '^(%S+) (%S+)$')
if name == 'dead' then
  local letter = redis.call('XRANGE', dead, entry, entry)[1]
  if not letter then return {} end
  return {'dead', entry, unpack(letter[2])}
end
for i = 7, #KEYS do
  if string.match(KEYS[i], '}:lane:(.+)$') == name then
    local found = redis.call('XRANGE', KEYS[i], entry, entry)[1]
    if not found then return {} end
    local held = redis.pcall('XPENDING', KEYS[i], 'workers', entry, entry, '1')
    if held.err or #held == 0 then return {'queued', name, found[2][6], found[2][4], entry, reported} end
    return {'running', name, found[2][6], found[2][4], entry, reported, held[1][2], held[1][3]}
  end
end
return {'queued', name, '0', '', entry, reported}
