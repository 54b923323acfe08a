--[[ claim.lua -- hand a worker as many jobs as it can start, by priority.

KEYS   1 paused      aq:{queue}:paused
       2 scheduled   aq:{queue}:scheduled
       3.. lane      aq:{queue}:lane:<name>, highest priority first, then the bell of each

ARGV   1 consumer    2 jobs wanted
       3.. for each lane: how many of them it may have before strict priority decides (its reserved share)

RETURNS     server time in ms; ms until the next scheduled job is due, or -1; a problem in words, or '';
            then five for each delivery: lane (from 1), entry id, id, job, crashes.
            An entry we did not write has an empty id, and its fields joined by spaces as job.
INVARIANTS  no more than wanted; nothing while paused, of a paused lane,
            or for a consumer that is paused because it stops;
            a delivery stays leased to the consumer until it is finished, released or reclaimed
]]
local paused, scheduled = KEYS[1], KEYS[2]
local lanes = (#KEYS - 2) / 2
local consumer, wanted = ARGV[1], tonumber(ARGV[2])

local time = redis.call('TIME')
local rung = {}
for number = 1, lanes do rung[number] = redis.call('LLEN', KEYS[2 + lanes + number]) end
local next_due = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due_in = -1
if next_due[2] then due_in = math.max(0, tonumber(next_due[2]) - now) end
local reply = {now, due_in, ''}

local stopped = {}
for _, name in ipairs(redis.call('SMEMBERS', paused)) do stopped[name] = true end
if stopped['*'] or stopped[consumer] then return reply end

local function read(number, count)
  local lane = KEYS[2 + number]
  if stopped[string.match(lane, '}:lane:(.+)$')] then return 0 end
  local got = redis.pcall('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', count, 'STREAMS', lane, '>')
  if got and got.err and string.find(got.err, 'NOGROUP', 1, true) then
    -- The group went with its stream (FLUSHALL, DEL) or was never there. At 0, so nothing is skipped.
    local made = redis.pcall('XGROUP', 'CREATE', lane, 'workers', '0', 'MKSTREAM')
    if made.err then got = made else
      got = redis.pcall('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', count, 'STREAMS', lane, '>')
    end
  end
  if not got then return 0 end
  if got.err then
    reply[3] = lane .. ': ' .. got.err
    return 0
  end
  local entries = got[1][2]
  local n = #reply
  for i = 1, #entries do
    local fields = entries[i][2]
    reply[n + 1], reply[n + 2] = number, entries[i][1]
    if fields[1] == 'id' and fields[3] == 'job' and fields[5] == 'crashes' and string.match(fields[6], '^%d+$') then
      reply[n + 3], reply[n + 4], reply[n + 5] = fields[2], fields[4], fields[6]
    else
      reply[n + 3], reply[n + 4], reply[n + 5] = '', table.concat(fields or {}, ' '), '0'
    end
    n = n + 5
  end
  return #entries
end

local left = wanted
for number = 1, lanes do
  local share = math.min(tonumber(ARGV[number + 2]), left)
  if share > 0 then left = left - read(number, share) end
end
for number = 1, lanes do
  if left == 0 then break end
  left = left - read(number, left)
end

-- Filled: there may be more, so wake one other for each lane; it does the same.
for number = 1, left == 0 and lanes or 0 do
  local length = redis.pcall('XLEN', KEYS[2 + number])
  if rung[number] == 0 and type(length) == 'number' and length > 0 then
    redis.call('LPUSH', KEYS[2 + lanes + number], '1')
  end
end
return reply
