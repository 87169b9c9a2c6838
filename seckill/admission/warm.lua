-- Copies a sale's row to Redis. The units are set only for a sale that Redis does not hold; for one that it holds, only
-- what an operator may change is copied: the numbers here are ahead of the row's.
--
-- KEYS  1 sale  2 stock  3 sales   (2 is that of the sale ARGV[1])
-- ARGV  1 sale id  2 name  3 starts_at_ms  4 ends_at_ms  5 per_user_limit  6 price_cents  7 state  8 stock
--       9 '1': nobody can have sold anything of it yet  10 '1': store the server's run id  11 result ttl in ms
-- Reply 'warmed' (first time) | 'copied' (again) | 'other' (it is closed, and another sale is current)
--       | 'open <sale id>' (another sale is current and has not ended)
--       | 'rebuild' (it was lost, or is being rebuilt: its terms are copied if it is the current sale, and nothing else)

local sale_id, state, ends_at = ARGV[1], ARGV[7], ARGV[4]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local current = redis.call('HMGET', KEYS[1], 'sale_id', 'state', 'ends_at_ms')
local is_current = current[1] == sale_id
if current[1] and not is_current then
  if state == 'closed' or now >= tonumber(ends_at) then return 'other' end
  if current[2] ~= 'closed' and now < tonumber(current[3]) then return 'open ' .. current[1] end
end

local held = redis.call('HEXISTS', KEYS[2], 'stock') == 1
local lost = redis.call('HEXISTS', KEYS[2], 'rebuild') == 1 or not held and ARGV[9] ~= '1'
if lost and not is_current then return 'rebuild' end
if not held and not lost then
  local run_id = ''
  if ARGV[10] == '1' then run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end
  redis.call('HSET', KEYS[2], 'stock', ARGV[8], 'initial', ARGV[8], 'admitted', 0, 'number', 0, 'run_id', run_id,
    'id_at_ms', ARGV[3])
end
redis.call('HSET', KEYS[2], 'ends_at_ms', ends_at)

-- The time part of derived order ids must never move, though the start of the sale may: it is the start at first warming.
local id_at = redis.call('HGET', KEYS[2], 'id_at_ms') or ARGV[3]
redis.call('HSET', KEYS[1], 'sale_id', sale_id, 'name', ARGV[2], 'starts_at_ms', ARGV[3], 'ends_at_ms', ends_at,
  'per_user_limit', ARGV[5], 'price_cents', ARGV[6], 'state', state, 'id_at_ms', id_at)
if state == 'closed' and is_current then
  redis.call('HSETNX', KEYS[1], 'closed_at_ms', string.format('%.0f', now))
else
  redis.call('HDEL', KEYS[1], 'closed_at_ms')
end
redis.call('ZADD', KEYS[3], 'GT', string.format('%.0f', math.max(tonumber(ends_at), now) + tonumber(ARGV[11])), sale_id)
if lost then return 'rebuild' end
return held and 'copied' or 'warmed'
