-- Closes admission of a sale until a rebuild installs what it found: without a stock the sale answers PAUSED, to orders
-- past the front as well, and changes of its units move nothing here.
--
-- KEYS 1 sale  2 stock  3 sales   (2 is that of the sale ARGV[2])
-- ARGV 1 the rebuild's token: the newest one installs  2 sale id  3 name  4 starts_at_ms  5 ends_at_ms  6 per_user_limit
--      7 price_cents  8 state  9 result ttl in ms
-- Reply 'other' (a newer sale is current), or the last admission number that is known here
local token, sale_id = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end

local current = redis.call('HGET', KEYS[1], 'sale_id')
-- Ids count up; texts of the same length compare like numbers.
if current and (#current > #sale_id or (#current == #sale_id and current > sale_id)) then return 'other' end

redis.call('HDEL', KEYS[2], 'stock')
redis.call('HSET', KEYS[2], 'rebuild', token, 'rebuild_at_ms', text(now), 'run_id', '', 'ends_at_ms', ARGV[5])
redis.call('HSETNX', KEYS[2], 'id_at_ms', ARGV[4])
redis.call('HSET', KEYS[1], 'sale_id', sale_id, 'name', ARGV[3], 'starts_at_ms', ARGV[4], 'ends_at_ms', ARGV[5],
  'per_user_limit', ARGV[6], 'price_cents', ARGV[7], 'state', ARGV[8], 'id_at_ms', redis.call('HGET', KEYS[2], 'id_at_ms'))
redis.call('ZADD', KEYS[3], 'GT', text(math.max(tonumber(ARGV[5]), now) + tonumber(ARGV[9])), sale_id)
return redis.call('HGET', KEYS[2], 'number') or '0'
