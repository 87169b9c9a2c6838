-- Whether what Redis holds of a sale is known to be all that was ever written.
--
-- KEYS 1 stock   ARGV 1 '1': compare run ids   Reply 1 or 0
local held = redis.call('HMGET', KEYS[1], 'stock', 'rebuild', 'run_id')
if not held[1] or held[2] then return 0 end
if ARGV[1] == '1' and string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') ~= held[3] then return 0 end
return 1
