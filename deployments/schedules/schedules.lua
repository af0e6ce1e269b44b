-- Every read and write of a schedule, each verb atomic.
--
-- As in tasks.lua: KEYS[1] is the prefix of all keys, ARGV[1] the verb, ARGV[2] its arguments as
-- JSON; times are microseconds of the server's clock; a verb run twice with the same arguments
-- leaves what one run leaves.
--
-- schedule:<id>          hash: the record; `next` its next time, `runs` the latest as JSON
-- schedules:<owner>      zset of ids by creation
-- schedules_due          zset of ids that are not paused by `next`, or by the end of the lease of
--                        whoever submits that run now
-- schedule_replay:<rid>  what a call answered, for its repetition

local P, A = KEYS[1], cjson.decode(ARGV[2])
local call = redis.call
local clock = call('TIME')
local NOW = clock[1] * 1000000 + clock[2]

local REPLAY_TTL_S, MAX_RUNS = 120, 20
local FIELDS = {'owner', 'name', 'cron', 'timezone', 'recipe', 'paused', 'next', 'runs', 'created',
  'updated'}

local function int(x) return string.format('%.0f', x) end

local function key(id) return P .. 'schedule:' .. id end

-- {id, then FIELDS}; nothing for what is not there, or someone else wrote over.
local function read(id)
  local h = redis.pcall('HMGET', key(id), unpack(FIELDS))
  if h.err then return nil end
  for i = 1, #FIELDS do
    if not h[i] then return nil end
  end
  table.insert(h, 1, id)
  return h
end

local function find()
  local record = read(A.id)
  return record and record[2] == A.owner and record or nil
end

local function await(id)
  local paused, at = unpack(call('HMGET', key(id), 'paused', 'next'))
  if paused == '1' then
    call('ZREM', P .. 'schedules_due', id)
  else
    call('ZADD', P .. 'schedules_due', at, id)
  end
end

local function recall()
  local text = call('GET', P .. 'schedule_replay:' .. A.rid)
  return text and cjson.decode(text)
end

local function remember(answer)
  call('SET', P .. 'schedule_replay:' .. A.rid, cjson.encode(answer), 'EX', REPLAY_TTL_S)
end

local verbs = {}

function verbs.clock()
  return {'ok', int(NOW)}
end

function verbs.create()
  local record = read(A.id)
  if record then return {'ok', record} end
  if call('ZCARD', P .. 'schedules:' .. A.owner) >= A.most then return {'full'} end
  call('HSET', key(A.id), 'owner', A.owner, 'name', A.name, 'cron', A.cron, 'timezone', A.timezone,
    'recipe', A.recipe, 'paused', A.paused and '1' or '0', 'next', int(A.next), 'runs', '[]',
    'created', int(NOW), 'updated', int(NOW))
  call('ZADD', P .. 'schedules:' .. A.owner, int(NOW), A.id)
  await(A.id)
  return {'ok', read(A.id)}
end

function verbs.get()
  local record = find()
  if not record then return {'missing'} end
  return {'ok', record}
end

function verbs.list()
  local out = {'ok'}
  for _, id in ipairs(call('ZREVRANGE', P .. 'schedules:' .. A.owner, 0, -1)) do
    local record = read(id)
    if record then out[#out + 1] = record end
  end
  return out
end

function verbs.update()
  if not find() then return {'missing'} end
  for _, field in ipairs({'name', 'cron', 'timezone'}) do
    if A[field] then call('HSET', key(A.id), field, A[field]) end
  end
  if A.paused ~= nil then call('HSET', key(A.id), 'paused', A.paused and '1' or '0') end
  call('HSET', key(A.id), 'updated', int(NOW))
  if A.next then call('HSET', key(A.id), 'next', int(A.next)) end
  if A.next or A.paused ~= nil then await(A.id) end
  return {'ok', read(A.id)}
end

function verbs.delete()
  local again = recall()
  if again then return {'ok', again} end
  local record = find()
  if not record then return {'missing'} end
  call('DEL', key(A.id))
  call('ZREM', P .. 'schedules:' .. A.owner, A.id)
  call('ZREM', P .. 'schedules_due', A.id)
  remember(record)
  return {'ok', record}
end

-- {now, records...}: no other call is given them for the length of the lease.
function verbs.due()
  local out, again = {'ok', int(NOW)}, recall()
  local ids = again or call('ZRANGEBYSCORE', P .. 'schedules_due', '-inf', int(NOW),
    'LIMIT', 0, A.limit)
  for _, id in ipairs(ids) do
    local record = read(id)
    if record then
      if not again then call('ZADD', P .. 'schedules_due', int(NOW + A.lease), id) end
      out[#out + 1] = record
    else
      call('ZREM', P .. 'schedules_due', id)
    end
  end
  if #ids > 0 and not again then remember(ids) end
  return out
end

-- The run of that time is settled. A schedule whose times were changed meanwhile keeps the new ones.
function verbs.ran()
  local record = read(A.id)
  if not record then return {'missing'} end
  local ok, runs = pcall(cjson.decode, record[9])
  if not ok or type(runs) ~= 'table' then runs = {} end
  if not (runs[1] and runs[1].at == int(A.at)) then
    local kept = {{at = int(A.at), task = A.task, error = A.error}}
    for i = 1, math.min(#runs, MAX_RUNS - 1) do kept[i + 1] = runs[i] end
    call('HSET', key(A.id), 'runs', cjson.encode(kept))
  end
  if record[8] == int(A.at) then
    call('HSET', key(A.id), 'next', int(A.next))
    await(A.id)
  end
  return {'ok', read(A.id)}
end

return verbs[ARGV[1]]()
