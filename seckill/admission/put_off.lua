-- Entries whose records are written anew, to wait: they count as published now, and someone should look at them only when
-- they have been carried again. Pending ones only. Safe to repeat, and to be repeated whenever the record is.
--
-- KEYS 1 ledger  2 due   ARGV 1 delay in ms, then order ids   Reply: how many were put off
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end

local put_off = 0
for i = 2, #ARGV do
  local entry = redis.call('HGET', KEYS[1], ARGV[i])
  if entry and redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    local kept = string.match(entry, '^(%d+:%d+:%d+:%d+:)%d+$')
    redis.call('HSET', KEYS[1], ARGV[i], kept .. text(now)) -- the last field is the time of publishing
    redis.call('ZADD', KEYS[2], text(now + tonumber(ARGV[1])), ARGV[i])
    put_off = put_off + 1
  end
end
return put_off
