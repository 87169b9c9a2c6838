-- Raises or lowers the units of a sale. Safe to repeat: a change id that is known answers what it moved before.
--
-- KEYS 1 stock  2 changes   ARGV 1 'add' | 'take' | 'undo' (of a take)  2 change id  3 units
-- Reply: units moved. A sale that is not held here, or is being rebuilt, moves none, and the change counts as made: the
-- warming or rebuild that follows copies a row that includes it.
local operation, units = ARGV[1], tonumber(ARGV[3])
local change = (operation == 'undo' and 'take' or operation) .. ':' .. ARGV[2]
local held = redis.call('HMGET', KEYS[1], 'stock', 'rebuild')
local stock = not held[2] and tonumber(held[1]) or nil
local before = tonumber(redis.call('HGET', KEYS[2], change))

local delta, recorded
if operation == 'undo' then
  if not before or before == 0 then return 0 end
  delta, recorded = before, 0
elseif before then
  return before
elseif operation == 'take' then
  recorded = math.min(units, stock or 0)
  delta = -recorded
else
  recorded = stock and units or 0
  delta = recorded
end

redis.call('HSET', KEYS[2], change, string.format('%.0f', recorded))
if stock and delta ~= 0 then
  local initial = tonumber(redis.call('HGET', KEYS[1], 'initial'))
  redis.call('HSET', KEYS[1], 'stock', string.format('%.0f', stock + delta),
    'initial', string.format('%.0f', initial + delta))
end
return math.abs(delta)
