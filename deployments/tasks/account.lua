-- Numbers of jobs, and the calls that accounts have used, each verb atomic.
--
-- As in tasks.lua: KEYS[1] is the prefix of all keys, ARGV[1] the verb, ARGV[2] its arguments as
-- JSON; a verb run twice with the same arguments leaves what one run leaves.
--
-- job:next         the number last given
-- job:<number>     hash: task, owner, and what its dialect notes as `about`
-- job:of:<task>    its number
-- calls:<owner>    how many calls were used
-- called:<rid>     what that call was answered, for its repetition

local P, A = KEYS[1], cjson.decode(ARGV[2])
local call = redis.call

local MAX_NUMBER = 2147483647 -- clients read 32 bits
local CALLED_TTL_S = 120

local function keep(number, task)
  call('EXPIRE', P .. 'job:' .. number, A.ttl)
  call('EXPIRE', P .. 'job:of:' .. task, A.ttl)
end

local verbs = {}

function verbs.number()
  local known = call('GET', P .. 'job:of:' .. A.task)
  if known then return {'ok', known} end
  local number
  repeat
    number = call('INCR', P .. 'job:next')
    if number > MAX_NUMBER then
      call('SET', P .. 'job:next', 1)
      number = 1
    end
  until call('EXISTS', P .. 'job:' .. number) == 0
  call('HSET', P .. 'job:' .. number, 'task', A.task, 'owner', A.owner, 'about', A.about)
  call('SET', P .. 'job:of:' .. A.task, number)
  keep(number, A.task)
  return {'ok', tostring(number)}
end

function verbs.job()
  local found = call('HMGET', P .. 'job:' .. A.number, 'task', 'owner', 'about')
  if not found[1] or found[2] ~= A.owner then return {'missing'} end
  keep(A.number, found[1])
  return {'ok', found[1], found[3]}
end

function verbs.use()
  local again = call('GET', P .. 'called:' .. A.rid)
  if again then return {again} end
  local key, word = P .. 'calls:' .. A.owner, 'ok'
  if tonumber(call('GET', key) or 0) >= A.most then
    word = 'over'
  else
    call('INCR', key)
  end
  call('SET', P .. 'called:' .. A.rid, word, 'EX', CALLED_TTL_S)
  return {word}
end

function verbs.give_back()
  if call('SET', P .. 'called:' .. A.rid, 'ok', 'EX', CALLED_TTL_S, 'NX') then
    call('DECR', P .. 'calls:' .. A.owner)
  end
  return {'ok'}
end

return verbs[ARGV[1]]()
