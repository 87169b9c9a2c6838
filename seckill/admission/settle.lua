-- Writes how orders of one sale ended, and takes them off the ledger. Safe to repeat: a result never changes, and what is
-- given back is given back only together with the removal of the ledger entry.
--
-- KEYS  1 stock  2 buyers  3 ledger  4 due  5 ages  6 parked  7 sales  8… one result per order
-- ARGV  1 sale id   2 how long a result is kept, in ms, from the end of the sale or from now if that is later
--       then per order: order id, user id, quantity, 'confirmed' | 'rejected', reason,
--       '1' if a rejection gives its units back ('0': the database has no units for them)
-- Reply per order: the result that stands, '<status>:<user>:<quantity>:<reason>'

local sale_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local FIRST_RESULT, FIRST_ORDER, FIELDS = 8, 3, 6
local count = (#ARGV - FIRST_ORDER + 1) / FIELDS
if count == 0 then return {} end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end

local counters = redis.call('HMGET', KEYS[1], 'stock', 'admitted', 'ends_at_ms')
local expires = text(math.max(tonumber(counters[3] or '0'), now) + ttl_ms)

local ids, result_keys = {}, {}
for i = 1, count do
  ids[i] = ARGV[FIRST_ORDER + FIELDS * (i - 1)]
  result_keys[i] = KEYS[FIRST_RESULT + i - 1]
end
local entries = redis.call('HMGET', KEYS[3], unpack(ids))
local results = redis.call('MGET', unpack(result_keys))

local units_back = 0
-- What the entry says was taken, goes back: the buyer's allowance always, the units if the database can sell them.
local function give_back(id, entry, result, with_units)
  local user, quantity = string.match(entry, '^(%d+):(%d+):')
  local units, orders = string.match(redis.call('HGET', KEYS[2], user) or '0', '^(%d+) ?(.*)$')
  local left, kept = tonumber(units) - tonumber(quantity), {}
  for other in string.gmatch(orders, '%S+') do
    if other ~= id then kept[#kept + 1] = other end
  end
  if left > 0 then
    redis.call('HSET', KEYS[2], user, text(left) .. ' ' .. table.concat(kept, ' '))
  else
    redis.call('HDEL', KEYS[2], user)
  end
  if with_units then units_back = units_back + tonumber(quantity) end
end

local standing, seen, removed = {}, {}, {}
for i = 1, count do
  local at = FIRST_ORDER + FIELDS * (i - 1)
  local id, user, quantity, status, reason, gives_units =
    ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5] == '1'
  local result = seen[id] or results[i]
  if not result then
    result = table.concat({status, user, quantity, reason}, ':')
    redis.call('SET', result_keys[i], result, 'PXAT', expires)
  elseif result ~= table.concat({status, user, quantity, reason}, ':') then
    -- Something else stands: that is what the buyer was told, so it also decides what goes back.
    status, reason = string.match(result, '^(%l+):%d+:%d+:(.*)$')
    gives_units = reason ~= 'SOLD_OUT'
  end
  if entries[i] and not seen[id] then
    if status == 'rejected' then give_back(id, entries[i], result, gives_units) end
    removed[#removed + 1] = id
  end
  seen[id] = result
  standing[i] = result
end

if #removed > 0 then
  redis.call('HDEL', KEYS[3], unpack(removed))
  redis.call('ZREM', KEYS[4], unpack(removed))
  redis.call('ZREM', KEYS[5], unpack(removed))
  redis.call('ZREM', KEYS[6], unpack(removed))
end
if units_back > 0 and counters[1] then
  redis.call('HSET', KEYS[1], 'stock', text(tonumber(counters[1]) + units_back),
    'admitted', text(tonumber(counters[2]) - units_back))
end
redis.call('ZADD', KEYS[7], 'GT', expires, sale_id)
return standing
