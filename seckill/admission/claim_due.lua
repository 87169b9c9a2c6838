-- Takes pending entries that are due, oldest first, and moves their times in the same step: two claimers never take the
-- same entry.
--
-- An entry is due again after ARGV[2] ms, or after as long as it is old already, up to PATIENCE times ARGV[2]: so that
-- entries which wait for consumers, rather than for a publisher, do not fill the topic with copies of themselves.
--
-- KEYS 1 ledger  2 due   ARGV 1 largest number  2 ms until an entry is due again   Reply: order id, entry, order id, …
local PATIENCE = 10
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end

local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', text(now), 'LIMIT', 0, ARGV[1])
if #ids == 0 then return {} end
local entries = redis.call('HMGET', KEYS[1], unpack(ids))
local pause_min = tonumber(ARGV[2])
local reply, due, ledger = {}, {}, {}
for i, id in ipairs(ids) do
  local kept, admitted_at = string.match(entries[i], '^(%d+:%d+:(%d+):%d+:)%d+$')
  local entry = kept .. text(now) -- its last field is the time of publishing
  local pause = math.min(math.max(pause_min, now - tonumber(admitted_at)), PATIENCE * pause_min)
  reply[2 * i - 1], reply[2 * i] = id, entry
  ledger[2 * i - 1], ledger[2 * i] = id, entry
  due[2 * i - 1], due[2 * i] = text(now + pause), id
end
redis.call('HSET', KEYS[1], unpack(ledger))
redis.call('ZADD', KEYS[2], unpack(due))
return reply
