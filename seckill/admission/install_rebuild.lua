-- Puts what a rebuild has staged in the place of what Redis held, and opens admission again, in one step.
--
-- KEYS 1 stock  2 to 7: buyers, ledger, due, ages, parked, changes   8 to 13: the same as staged
-- ARGV 1 the rebuild's token  2 stock  3 initial  4 number  5 '1': the server tells its run id
--      6 when the ledger was read (ms)  7 to 12: how many members each staged key must have
-- Reply 'installed' | 'overtaken' (another rebuild has begun, or Redis forgot this one) | 'restarted' (the server that
--       was read is not this one) | 'incomplete' (staged keys have expired, or were lost)
local KINDS = 6
local held = redis.call('HMGET', KEYS[1], 'rebuild', 'rebuild_run_id')
if held[1] ~= ARGV[1] then return 'overtaken' end
local run_id = ''
if ARGV[5] == '1' then run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end
if run_id ~= held[2] then return 'restarted' end
local COUNT = {'HLEN', 'HLEN', 'ZCARD', 'ZCARD', 'ZCARD', 'HLEN'}
for i = 1, KINDS do
  if redis.call(COUNT[i], KEYS[7 + i]) ~= tonumber(ARGV[6 + i]) then return 'incomplete' end
end

-- What was set aside after the ledger was read stays aside: its letter may be younger than what the rebuild has read.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], ARGV[6], '+inf')) do
  if redis.call('HEXISTS', KEYS[9], id) == 1 then
    redis.call('ZREM', KEYS[10], id)
    redis.call('ZREM', KEYS[11], id)
    redis.call('ZADD', KEYS[12], redis.call('ZSCORE', KEYS[6], id), id)
  end
end

-- What has ended since the other stores were read is due, so that somebody settles it: nobody looks at what is aside.
local result_prefix = string.sub(KEYS[1], 1, -string.len('stock') - 1) .. 'result:'
for _, id in ipairs(redis.call('ZRANGE', KEYS[12], 0, -1)) do
  if redis.call('EXISTS', result_prefix .. id) == 1 then
    redis.call('ZREM', KEYS[12], id)
    redis.call('ZADD', KEYS[10], ARGV[6], id)
    redis.call('ZADD', KEYS[11], ARGV[6], id)
  end
end

for i = 2, 7 do
  redis.call('UNLINK', KEYS[i])
  if redis.call('EXISTS', KEYS[i + 6]) == 1 then
    redis.call('RENAME', KEYS[i + 6], KEYS[i])
    redis.call('PERSIST', KEYS[i])
  end
end
local admitted = string.format('%.0f', tonumber(ARGV[3]) - tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'stock', ARGV[2], 'initial', ARGV[3], 'admitted', admitted, 'number', ARGV[4], 'run_id', run_id)
redis.call('HDEL', KEYS[1], 'rebuild', 'rebuild_at_ms', 'rebuild_run_id')
return 'installed'
