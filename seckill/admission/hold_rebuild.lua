-- Says that a rebuild is alive, or that it has given up. Admission stays closed in both cases.
--
-- KEYS 1 stock   ARGV 1 the rebuild's token  2 'renew' | 'release'
-- Reply 1: done, 0: another rebuild has begun, or this one has installed
if redis.call('HGET', KEYS[1], 'rebuild') ~= ARGV[1] then return 0 end
if ARGV[2] == 'renew' then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('HSET', KEYS[1], 'rebuild_at_ms', string.format('%.0f', now))
else
  redis.call('HSET', KEYS[1], 'rebuild', 'needed')
  redis.call('HDEL', KEYS[1], 'rebuild_at_ms', 'rebuild_run_id')
end
return 1
