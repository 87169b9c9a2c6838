-- Pending entries that are due, oldest first. Changes nothing.
--
-- KEYS 1 ledger  2 due   ARGV 1 largest number   Reply: order id, entry, due (ms), order id, …
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'WITHSCORES', 'LIMIT', 0, ARGV[1])
if #due == 0 then return {} end
local ids = {}
for i = 1, #due, 2 do ids[#ids + 1] = due[i] end
local entries = redis.call('HMGET', KEYS[1], unpack(ids))
local reply = {}
for i, id in ipairs(ids) do
  if entries[i] then
    reply[#reply + 1] = id
    reply[#reply + 1] = entries[i]
    reply[#reply + 1] = due[2 * i]
  end
end
return reply
