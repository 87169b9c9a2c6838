-- Closes admission of a sale until a rebuild installs what it has found. While `rebuild` is set, no order of the sale is
-- admitted (orders past the front included), and changes of its units move nothing here.
--
-- KEYS 1 sale  2 stock  3 sales   (2 is that of the sale ARGV[2])
-- ARGV 1 the rebuild's token  2 sale id  3 name  4 starts_at_ms  5 ends_at_ms  6 per_user_limit  7 price_cents  8 state
--      9 result ttl in ms  10 '1': it is the product's newest sale, and becomes the current one where none is newer
--      11 ms after which another rebuild that says nothing counts as dead  12 '1': the server tells its run id
-- Reply {'busy'}: another rebuild is at it | {'closed', last admission number known here, time (ms)}
local token, sale_id, newest = ARGV[1], ARGV[2], ARGV[10] == '1'
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end

local held = redis.call('HMGET', KEYS[2], 'rebuild_at_ms', 'number')
if held[1] and now - tonumber(held[1]) < tonumber(ARGV[11]) then return {'busy'} end

local run_id = ''
if ARGV[12] == '1' then run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end
redis.call('HSET', KEYS[2], 'rebuild', token, 'rebuild_at_ms', text(now), 'rebuild_run_id', run_id, 'ends_at_ms', ARGV[5])
redis.call('HSETNX', KEYS[2], 'id_at_ms', ARGV[4])

-- Ids count up; texts of the same length compare like numbers.
local current = redis.call('HGET', KEYS[1], 'sale_id')
local older = not current or #current < #sale_id or (#current == #sale_id and current < sale_id)
if current == sale_id or (newest and older) then
  redis.call('HSET', KEYS[1], 'sale_id', sale_id, 'name', ARGV[3], 'starts_at_ms', ARGV[4], 'ends_at_ms', ARGV[5],
    'per_user_limit', ARGV[6], 'price_cents', ARGV[7], 'state', ARGV[8],
    'id_at_ms', redis.call('HGET', KEYS[2], 'id_at_ms'))
  if ARGV[8] == 'closed' then
    redis.call('HSETNX', KEYS[1], 'closed_at_ms', text(now))
  else
    redis.call('HDEL', KEYS[1], 'closed_at_ms')
  end
end
redis.call('ZADD', KEYS[3], 'GT', text(math.max(tonumber(ARGV[5]), now) + tonumber(ARGV[9])), sale_id)
return {'closed', held[2] or '0', text(now)}
