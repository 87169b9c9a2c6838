-- Takes pending entries for publication, each only if it still reads as whoever looked at it has seen it: of two who saw
-- the same entry, one gets it. What it takes is marked as published now, and is due again later.
--
-- An entry is due again after ARGV[1] ms, or after as long as it is old already, up to PATIENCE times ARGV[1]: so that
-- entries which wait for consumers, rather than for a publisher, do not fill the topic with copies of themselves.
--
-- KEYS 1 ledger  2 due   ARGV 1 ms until an entry is due again, then order id, entry, order id, …   Reply: the ids taken
local PATIENCE = 10
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end

local pause_min = tonumber(ARGV[1])
local taken = {}
for i = 2, #ARGV, 2 do
  local id, seen = ARGV[i], ARGV[i + 1]
  local pending = redis.call('ZSCORE', KEYS[2], id)
  if pending and redis.call('HGET', KEYS[1], id) == seen then
    local kept, admitted_at = string.match(seen, '^(%d+:%d+:(%d+):%d+:)%d+$')
    local pause = math.min(math.max(pause_min, now - tonumber(admitted_at)), PATIENCE * pause_min)
    redis.call('HSET', KEYS[1], id, kept .. text(now)) -- the last field is the time of publishing
    redis.call('ZADD', KEYS[2], text(now + pause), id)
    taken[#taken + 1] = id
  end
end
return taken
