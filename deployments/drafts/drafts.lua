-- Every read and write of a draft, each verb atomic.
--
-- As in tasks.lua: KEYS[1] is the prefix of all keys, ARGV[1] the verb, ARGV[2] its arguments as
-- JSON; times are microseconds of the server's clock; a verb run twice with the same arguments
-- leaves what one run leaves.
--
-- draft:<kind>:<id>       hash: the record; `lock` by whom, until `locked_until`
-- drafts:<kind>:<owner>   zset of ids by creation
-- draft_ages              zset of `<kind>:<id>` by last change
-- draft_gone:<rid>        the record that this call deleted, for its repetition

local P, A = KEYS[1], cjson.decode(ARGV[2])
local call = redis.call
local clock = call('TIME')
local NOW = clock[1] * 1000000 + clock[2]

local GONE_TTL_S = 120

local function int(x) return string.format('%.0f', x) end

local function key(id) return P .. 'draft:' .. A.kind .. ':' .. id end
local function own() return P .. 'drafts:' .. A.kind .. ':' .. A.owner end

-- {id, owner, body, created, updated, locked}; nothing for what someone else wrote over.
local function read(id)
  local h = redis.pcall('HMGET', key(id), 'owner', 'body', 'created', 'updated', 'locked_until')
  if h.err or h[1] ~= A.owner or not (h[2] and h[3] and h[4]) then return nil end
  local locked = (tonumber(h[5] or '') or 0) > NOW
  return {id, h[1], h[2], h[3], h[4], locked and 1 or 0}
end

local function locked(record) return record[6] == 1 end

local function touch(id)
  call('HSET', key(id), 'updated', int(NOW))
  call('ZADD', P .. 'draft_ages', int(NOW), A.kind .. ':' .. id)
end

local function erase(kind, id, owner)
  call('DEL', P .. 'draft:' .. kind .. ':' .. id)
  call('ZREM', P .. 'drafts:' .. kind .. ':' .. owner, id)
  call('ZREM', P .. 'draft_ages', kind .. ':' .. id)
end

local verbs = {}

function verbs.create()
  local record = read(A.id)
  if record then return {'ok', record} end
  if call('ZCARD', own()) >= A.most then return {'full'} end
  call('HSET', key(A.id), 'owner', A.owner, 'body', A.body, 'created', int(NOW))
  call('ZADD', own(), int(NOW), A.id)
  touch(A.id)
  return {'ok', read(A.id)}
end

function verbs.get()
  local record = read(A.id)
  if not record then return {'missing'} end
  return {'ok', record}
end

function verbs.list()
  local out = {'ok'}
  for _, id in ipairs(call('ZREVRANGE', own(), 0, -1)) do
    local record = read(id)
    if record then out[#out + 1] = record end
  end
  return out
end

function verbs.update()
  local record = read(A.id)
  if not record then return {'missing'} end
  if locked(record) then return {'locked'} end
  call('HSET', key(A.id), 'body', A.body)
  touch(A.id)
  return {'ok', read(A.id)}
end

function verbs.delete()
  local again = call('GET', P .. 'draft_gone:' .. A.rid)
  if again then return {'ok', cjson.decode(again)} end
  local record = read(A.id)
  if not record then return {'missing'} end
  if locked(record) then return {'locked'} end
  erase(A.kind, A.id, A.owner)
  call('SET', P .. 'draft_gone:' .. A.rid, cjson.encode(record), 'EX', GONE_TTL_S)
  return {'ok', record}
end

function verbs.lock()
  local record = read(A.id)
  if not record then return {'missing'} end
  if locked(record) and call('HGET', key(A.id), 'lock') ~= A.rid then return {'locked'} end
  call('HSET', key(A.id), 'lock', A.rid, 'locked_until', int(NOW + A.lease))
  touch(A.id)
  return {'ok', read(A.id)}
end

-- Ends the lock of this holder; with `done` the draft goes.
function verbs.unlock()
  if not read(A.id) or call('HGET', key(A.id), 'lock') ~= A.rid then return {'ok'} end
  if A.done then
    erase(A.kind, A.id, A.owner)
  else
    call('HDEL', key(A.id), 'lock', 'locked_until')
  end
  return {'ok'}
end

-- A locked one is younger than its lock, which is shorter than any age.
function verbs.expire()
  local old = call('ZRANGEBYSCORE', P .. 'draft_ages', '-inf', int(NOW - A.age), 'LIMIT', 0, A.limit)
  for _, name in ipairs(old) do
    local kind, id = string.match(name, '^(%l+):(.+)$')
    if kind then
      local owner = redis.pcall('HGET', P .. 'draft:' .. kind .. ':' .. id, 'owner')
      erase(kind, id, type(owner) == 'string' and owner or '')
    end
    call('ZREM', P .. 'draft_ages', name)
  end
  return {'ok', #old}
end

return verbs[ARGV[1]]()
