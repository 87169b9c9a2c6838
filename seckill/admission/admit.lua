-- Admits a micro-batch of orders of one product: all checks and all reservations in one atomic step.
-- Safe to repeat: an order id that is known gets its first answer, and nothing is taken twice.
--
-- KEYS  1 sale  2 stock  3 buyers  4 ledger  5 due  6 ages  7 parked  8… one result per order
--       (2 to 8… are those of the sale ARGV[1])
-- ARGV  1 sale id   2 '1': the orders are of that sale; '0': of the current one, which the caller takes for ARGV[1];
--       '2': of the current one, unless another sale of the product has admitted them: they came past the front before
--       3 largest number of ledger entries   4 ms until someone should look at a new entry   5 '1': compare run ids
--       then per order: order id, user id, quantity
-- Reply 1 'current' | 'none' (the product has no sale) | 'other <sale id> <time of its ids>' (ask again with that one)
--       then, with 'current', one text per order:
--         A <admitted at> <number>      admitted now
--         P <admitted at> <number>      admitted before, still pending
--         L                             admitted before, parked among the dead letters
--         D <status> <reason>           admitted before, and ended
--         S <sale id>                   admitted before in that sale: ask again with that one
--         R <code> [fact]               refused; 'PAUSED rebuild': the sale waits for what the other stores say
--
-- Ids stay texts throughout: a Lua number keeps only 53 bits.

local sale_id, fixed, past_front = ARGV[1], ARGV[2] == '1', ARGV[2] == '2'
local entries_max, look_after_ms, run_id_check = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local FIRST_RESULT, FIRST_ORDER = 8, 6
local REMEMBERED_MAX = 8 -- order ids kept per buyer, so that ALREADY_ORDERED can name one

local sale = redis.call('HMGET', KEYS[1], 'sale_id', 'state', 'starts_at_ms', 'ends_at_ms', 'per_user_limit',
  'closed_at_ms', 'id_at_ms')
local current_id = sale[1]
if not fixed then
  if not current_id then return {'none'} end
  if current_id ~= sale_id then return {'other ' .. current_id .. ' ' .. sale[7]} end
end

local count = (#ARGV - FIRST_ORDER + 1) / 3
local answers = {'current'}
if count == 0 then return answers end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end

local ids, users, result_keys = {}, {}, {}
for i = 1, count do
  ids[i] = ARGV[FIRST_ORDER + 3 * (i - 1)]
  users[i] = ARGV[FIRST_ORDER + 3 * (i - 1) + 1]
  result_keys[i] = KEYS[FIRST_RESULT + i - 1]
end
local entries = redis.call('HMGET', KEYS[4], unpack(ids))
local results = redis.call('MGET', unpack(result_keys))
local bought = redis.call('HMGET', KEYS[3], unpack(users))
local counters = redis.call('HMGET', KEYS[2], 'stock', 'number', 'admitted', 'run_id', 'ends_at_ms', 'rebuild')
local stock, number, admitted = tonumber(counters[1]), tonumber(counters[2]), tonumber(counters[3])
local limit = tonumber(sale[5])
local entry_count = redis.call('HLEN', KEYS[4])

-- Whether what is held here of the sale is all that was ever written. Another server process may have lost acknowledged
-- writes: only warming or a rebuild vouches for its contents.
local asked, trusted = false, false
local function vouched()
  if not asked then
    asked, trusted = true, stock ~= nil and not counters[6]
    if trusted and run_id_check then
      trusted = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') == counters[4]
    end
  end
  return trusted
end

-- Why the sale as a whole takes no order at this moment; nil when it does.
local function closed()
  if current_id ~= sale_id and not counters[5] then return 'R UNKNOWN_PRODUCT' end
  if not vouched() then return 'R PAUSED rebuild' end
  if current_id ~= sale_id then return 'R ENDED ' .. counters[5] end
  if sale[2] == 'closed' then return 'R ENDED ' .. (sale[6] or sale[4]) end
  if sale[2] ~= 'open' then return 'R PAUSED' end
  if now < tonumber(sale[3]) then return 'R NOT_STARTED ' .. sale[3] end
  if now >= tonumber(sale[4]) then return 'R ENDED ' .. sale[4] end
  return nil
end

local buyers = {} -- user id → {units, order ids}, as this batch leaves them
local function buyer_of(i)
  local buyer = buyers[users[i]]
  if not buyer then
    local units, orders = string.match(bought[i] or '0', '^(%d+) ?(.*)$')
    buyer = {units = tonumber(units), orders = orders}
    buyers[users[i]] = buyer
  end
  return buyer
end

-- The first answer again, or nil for an id that nobody has seen. Read for every order before anything else is judged.
-- How an order ended goes before its entry: a rebuild may have put back an entry that had just been settled.
local fresh = {} -- entries that this batch makes
local function known(i, user, quantity)
  local entry = fresh[ids[i]] or entries[i]
  if entry and not results[i] then
    local its_user, its_quantity, at, its_number = string.match(entry, '^(%d+):(%d+):(%d+):(%d+):')
    if its_user ~= user or its_quantity ~= quantity then return 'R KEY_REUSED' end
    -- A buyer may have been told already how it ended, by results that were lost.
    if not fixed and not past_front and not vouched() then return 'R PAUSED rebuild' end
    if not fresh[ids[i]] and redis.call('ZSCORE', KEYS[7], ids[i]) then return 'L' end
    return 'P ' .. at .. ' ' .. its_number
  end
  if results[i] then
    local status, its_user, its_quantity, reason = string.match(results[i], '^(%l+):(%d+):(%d+):(.*)$')
    if its_user ~= user or its_quantity ~= quantity then return 'R KEY_REUSED' end
    return 'D ' .. status .. ' ' .. reason
  end
  -- Its result has expired, and nothing was given back for it: it was confirmed.
  local orders = buyer_of(i).orders
  if orders ~= '' and string.find(' ' .. orders .. ' ', ' ' .. ids[i] .. ' ', 1, true) then return 'D confirmed ' end
  return nil
end

-- The sale that has admitted this id, when it is another one: an order that names no sale may come again after its sale
-- was replaced, and must not be admitted in the new one as well. Sale 0 has only refusals that were told.
local other_sales
local function elsewhere(i)
  local root = string.sub(KEYS[1], 1, -string.len('sale') - 1)
  other_sales = other_sales or redis.call('ZRANGE', root .. 'sales', 0, -1)
  for _, other in ipairs(other_sales) do
    if other ~= sale_id and other ~= '0' then
      local known_there = redis.call('HEXISTS', root .. other .. ':ledger', ids[i]) == 1
        or redis.call('EXISTS', root .. other .. ':result:' .. ids[i]) == 1
      if known_there then return 'S ' .. other end
    end
  end
  return nil
end

local function reserve(i, user, quantity)
  local units, buyer = tonumber(quantity), buyer_of(i)
  local left = math.max(limit - buyer.units, 0)
  if units > limit then return 'R LIMIT_EXCEEDED ' .. text(left) end
  if left == 0 then return 'R ALREADY_ORDERED ' .. (string.match(buyer.orders, '^%S+') or '') end
  if units > left then return 'R LIMIT_EXCEEDED ' .. text(left) end
  if units > stock then return 'R SOLD_OUT ' .. text(stock) end
  if entry_count >= entries_max then return 'R OVERLOADED' end

  stock, admitted, number, entry_count = stock - units, admitted + units, number + 1, entry_count + 1
  buyer.units, buyer.changed = buyer.units + units, true
  local _, remembered = string.gsub(buyer.orders, '%S+', '')
  if remembered < REMEMBERED_MAX then
    buyer.orders = buyer.orders == '' and ids[i] or buyer.orders .. ' ' .. ids[i]
  end
  fresh[ids[i]] = table.concat({user, quantity, text(now), text(number), text(now)}, ':')
  return 'A ' .. text(now) .. ' ' .. text(number)
end

local taken = {}
local why_closed, judged = nil, false
for i = 1, count do
  local quantity = ARGV[FIRST_ORDER + 3 * (i - 1) + 2]
  local answer = known(i, users[i], quantity) or (past_front and elsewhere(i))
  if not answer then
    if not judged then why_closed, judged = closed(), true end
    answer = why_closed or reserve(i, users[i], quantity)
    if string.sub(answer, 1, 1) == 'A' then taken[#taken + 1] = ids[i] end
  end
  answers[i + 1] = answer
end
if #taken == 0 then return answers end

local ledger, due, ages, changed = {}, {}, {}, {}
for i, id in ipairs(taken) do
  ledger[2 * i - 1], ledger[2 * i] = id, fresh[id]
  due[2 * i - 1], due[2 * i] = text(now + look_after_ms), id
  ages[2 * i - 1], ages[2 * i] = text(now), id
end
for user, buyer in pairs(buyers) do
  if buyer.changed then
    changed[#changed + 1] = user
    changed[#changed + 1] = text(buyer.units) .. ' ' .. buyer.orders
  end
end
redis.call('HSET', KEYS[2], 'stock', text(stock), 'number', text(number), 'admitted', text(admitted))
redis.call('HSET', KEYS[3], unpack(changed))
redis.call('HSET', KEYS[4], unpack(ledger))
redis.call('ZADD', KEYS[5], unpack(due))
redis.call('ZADD', KEYS[6], unpack(ages))
return answers
