-- Takes an entry that was set aside back among the pending ones, because its record is about to be published again.
-- An entry that is not parked is left as it is, so this may be repeated.
--
-- KEYS 1 ledger  2 due  3 ages  4 parked   ARGV 1 ms until someone should look at it   2 order id
-- Reply: 1 when it is pending now and was not
local id = ARGV[2]
local entry = redis.call('HGET', KEYS[1], id)
if not entry or not redis.call('ZSCORE', KEYS[4], id) then return 0 end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end

local kept, admitted_at = string.match(entry, '^(%d+:%d+:(%d+):%d+:)%d+$')
redis.call('ZREM', KEYS[4], id)
redis.call('HSET', KEYS[1], id, kept .. text(now)) -- the last field is the time of publishing
redis.call('ZADD', KEYS[2], text(now + tonumber(ARGV[1])), id)
redis.call('ZADD', KEYS[3], admitted_at, id)
return 1
