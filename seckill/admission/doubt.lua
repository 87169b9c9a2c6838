-- Closes admission of a sale of which somebody has seen what Redis does not know: it has gone back, until a rebuild.
--
-- KEYS 1 stock   ARGV 1 the admission number that was seen
-- Reply 1: it waits for a rebuild, or one is under way, which may die; 0: it knows the number
local held = redis.call('HMGET', KEYS[1], 'rebuild', 'stock', 'number')
if held[1] then return 1 end
if held[2] and tonumber(held[3]) >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'rebuild', 'needed')
return 1
