-- Puts what a rebuild has staged in the place of what Redis held, and opens admission again, in one step.
--
-- KEYS 1 stock  2 buyers  3 ledger  4 due  5 ages  6 parked   7 to 11: buyers, ledger, due, ages, parked as staged
-- ARGV 1 the rebuild's token  2 stock  3 initial  4 admitted  5 number  6 '1': store the server's run id
-- Reply 1: done, 0: a newer rebuild has begun, which installs
if redis.call('HGET', KEYS[1], 'rebuild') ~= ARGV[1] then return 0 end

-- What was set aside while the rebuild read the stores stays aside: its letter may have been written after they were.
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
for _, id in ipairs(redis.call('ZRANGE', KEYS[6], 0, -1)) do
  if redis.call('HEXISTS', KEYS[8], id) == 1 and not redis.call('ZSCORE', KEYS[11], id) then
    redis.call('ZREM', KEYS[9], id)
    redis.call('ZREM', KEYS[10], id)
    redis.call('ZADD', KEYS[11], now, id)
  end
end

for i = 2, 6 do
  redis.call('DEL', KEYS[i])
  if redis.call('EXISTS', KEYS[i + 5]) == 1 then
    redis.call('RENAME', KEYS[i + 5], KEYS[i])
    redis.call('PERSIST', KEYS[i])
  end
end
local run_id = ''
if ARGV[6] == '1' then run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end
redis.call('HSET', KEYS[1], 'stock', ARGV[2], 'initial', ARGV[3], 'admitted', ARGV[4], 'number', ARGV[5], 'run_id', run_id)
redis.call('HDEL', KEYS[1], 'rebuild', 'rebuild_at_ms')
return 1
