-- Sets entries aside, because their records became dead letters: existing entries only. Nobody publishes them again.
--
-- KEYS 1 ledger  2 due  3 ages  4 parked   ARGV order ids   Reply: how many are parked now that were not
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local parked = 0
for i = 1, #ARGV do
  local id = ARGV[i]
  if redis.call('HEXISTS', KEYS[1], id) == 1 and not redis.call('ZSCORE', KEYS[4], id) then
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZREM', KEYS[3], id)
    redis.call('ZADD', KEYS[4], now, id)
    parked = parked + 1
  end
end
return parked
