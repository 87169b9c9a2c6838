-- Moves the time at which someone should look at these entries: pending ones only.
--
-- KEYS 1 due   ARGV 1 delay in ms, then order ids   Reply: how many were moved
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due = string.format('%.0f', now + tonumber(ARGV[1]))
local moved = 0
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], due, ARGV[i])
    moved = moved + 1
  end
end
return moved
