-- Opens, pauses or closes the sale, if it is the current one.
--
-- KEYS 1 sale   ARGV 1 sale id  2 state   Reply 1: done, 0: another sale is current, or none
if redis.call('HGET', KEYS[1], 'sale_id') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2])
if ARGV[2] == 'closed' then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('HSETNX', KEYS[1], 'closed_at_ms', string.format('%.0f', now))
else
  redis.call('HDEL', KEYS[1], 'closed_at_ms')
end
return 1
