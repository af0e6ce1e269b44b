-- Every read and write of a LoRA's record, each verb atomic.
--
-- As in tasks.lua: KEYS[1] is the prefix of all keys, ARGV[1] the verb, ARGV[2] its arguments as
-- JSON; times are microseconds of the server's clock; a verb run twice with the same arguments
-- leaves what one run leaves.
--
-- lora:<id>             hash: the record; `deleted` once it is hidden
-- lora_versions:<id>    hash: number -> JSON {number, created, call, version}
-- lora_call:<call>      "<id> <number>": what that call registered, as long as the record lives
-- lora_names:<owner>    hash: folded name -> id; lora_public:<folded name> zset of ids, oldest first
-- loras:own:<owner>, loras:public    zsets of ids by creation, for listings
-- lora_users:<id>       set of the tasks that may still read its files
-- lora_held:<task>      set of ids; lora_holds zset of tasks by the time of their hold
-- lora_deleted          zset of ids whose files wait for their users' end
-- lora_trash            zset of object keys by the time from which nothing can name them

local P, A = KEYS[1], cjson.decode(ARGV[2])
local call = redis.call
local clock = call('TIME')
local NOW = clock[1] * 1000000 + clock[2]

local LIST_BATCH, MAX_SCANNED = 100, 2000
local MAX_NAMES, MAX_HOLDS, MAX_TRASH = 500, 10000, 100

local function int(x) return string.format('%.0f', x) end

-- The record ---------------------------------------------------------------------------------------

-- Nothing for what someone else wrote over: it must not stop a verb that only passes by.
local function read(id)
  local flat, h = redis.pcall('HGETALL', P .. 'lora:' .. id), {}
  if flat.err or #flat == 0 then return nil end
  for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
  local whole = h.id == id and h.name and h.fold and h.owner and h.visibility
  return whole and tonumber(h.version) and tonumber(h.seq) and h or nil
end

local function set(h, changes)
  for field, value in pairs(changes) do
    if type(value) == 'number' then value = int(value) end
    h[field] = value
    call('HSET', P .. 'lora:' .. h.id, field, value)
  end
end

local function version(h, number)
  local found = redis.pcall('HGET', P .. 'lora_versions:' .. h.id, int(number))
  return type(found) == 'string' and found or nil
end

local function flat(h)
  local out = {}
  for field, value in pairs(h) do
    out[#out + 1] = field
    out[#out + 1] = value
  end
  return out
end

-- {fields, JSON of a version, ...}: the newest first, or the newest alone.
local function record(h, all)
  local out = {flat(h)}
  for number = tonumber(h.version), all and 1 or tonumber(h.version), -1 do
    out[#out + 1] = version(h, number) or '{}'
  end
  return out
end

local function visible(h)
  return h and not h.deleted and (h.owner == A.owner or h.visibility == 'public')
end

local function own(id)
  local h = read(id)
  return h and not h.deleted and h.owner == A.owner and h or nil
end

local function names(h) return P .. 'lora_names:' .. h.owner end

local function enter(h)
  call('HSET', names(h), h.fold, h.id)
  call('ZADD', P .. 'loras:own:' .. h.owner, h.seq, h.id)
  if h.visibility == 'public' then
    call('ZADD', P .. 'loras:public', h.seq, h.id)
    call('ZADD', P .. 'lora_public:' .. h.fold, h.seq, h.id)
  end
end

local function leave(h)
  call('HDEL', names(h), h.fold)
  call('ZREM', P .. 'loras:own:' .. h.owner, h.id)
  call('ZREM', P .. 'loras:public', h.id)
  call('ZREM', P .. 'lora_public:' .. h.fold, h.id)
end

-- Objects ------------------------------------------------------------------------------------------

local function discard(key) call('ZADD', P .. 'lora_trash', int(NOW), key) end

-- False once it may be gone.
local function announced(key)
  local due = call('ZSCORE', P .. 'lora_trash', key)
  return due and tonumber(due) > NOW
end

local function keep(key) call('ZREM', P .. 'lora_trash', key) end

local function late(h) return A.preview and A.preview ~= h.preview and not announced(A.preview) end

local function apply(h, changes)
  changes.visibility, changes.trigger_words = A.visibility, A.trigger_words
  if A.preview and h.preview ~= A.preview then
    keep(A.preview)
    if h.preview then discard(h.preview) end
    changes.preview = A.preview
  end
  changes.updated = NOW
  set(h, changes)
end

local verbs = {}

function verbs.announce()
  call('ZADD', P .. 'lora_trash', int(NOW + A.ttl), A.key)
  return {'ok'}
end

-- Hidden records that nobody reads any more are gone with this; their objects are due.
local function erase(id)
  local h = read(id)
  for _, text in ipairs(redis.pcall('HVALS', P .. 'lora_versions:' .. id)) do
    -- of a damaged one the object stays, and the others' go on
    pcall(function()
      local stored = cjson.decode(text)
      discard(stored.version.key)
      if type(stored.version.curve_key) == 'string' then discard(stored.version.curve_key) end
      for _, key in ipairs(stored.version.references or {}) do discard(key) end
      call('DEL', P .. 'lora_call:' .. stored.call)
    end)
  end
  if h and h.preview then discard(h.preview) end
  call('DEL', P .. 'lora:' .. id, P .. 'lora_versions:' .. id)
  call('ZREM', P .. 'lora_deleted', id)
end

function verbs.trash()
  for _, id in ipairs(call('ZRANGE', P .. 'lora_deleted', 0, -1)) do
    if call('EXISTS', P .. 'lora_users:' .. id) == 0 then erase(id) end
  end
  return {'ok', unpack(call('ZRANGEBYSCORE', P .. 'lora_trash', '-inf', int(NOW),
    'LIMIT', 0, MAX_TRASH))}
end

function verbs.forget()
  for _, key in ipairs(A.keys) do call('ZREM', P .. 'lora_trash', key) end
  return {'ok'}
end

-- Owners -------------------------------------------------------------------------------------------

local function known()
  local old = call('GET', P .. 'lora_call:' .. A.call)
  if not old then return nil end
  local id, number = string.match(old, '^(%S+) (%d+)$')
  local h = own(id)
  if not h then return {'gone'} end
  local stored = cjson.decode(version(h, number))
  if stored.version.sha256 ~= A.sha256 then return {'conflict'} end
  return {'known', unpack(record(h, true))}
end

-- Whether the claim of a training still holds, by its record (tasks.lua).
local function claimed()
  local task = call('HMGET', P .. 'task:' .. A.task, 'status', 'fence')
  return task[1] == 'running' and task[2] == int(A.fence)
end

local function owned() return call('HLEN', P .. 'lora_names:' .. A.owner) end

function verbs.count() return {'ok', owned()} end

function verbs.register()
  local answer = known()
  if answer then return answer end
  if A.task and not claimed() then return {'stale'} end
  local id = call('HGET', P .. 'lora_names:' .. A.owner, A.fold)
  local h = id and read(id)
  if not announced(A.key) or late(h or {}) then return {'late'} end
  for _, key in ipairs(A.others) do
    if not announced(key) then return {'late'} end
  end
  if not h and A.max_owned and owned() >= A.max_owned then return {'full'} end
  if not h then
    h = {id = A.id}
    if A.task then set(h, {task = A.task}) end
    set(h, {id = A.id, name = A.name, fold = A.fold, owner = A.owner, version = 0, created = NOW,
      seq = call('INCR', P .. 'lora_seq'), visibility = 'private', trigger_words = '[]'})
  end
  leave(h)
  local number = tonumber(h.version) + 1
  call('HSET', P .. 'lora_versions:' .. h.id, number, '{"number":' .. number .. ',"created":'
    .. int(NOW) .. ',"call":' .. cjson.encode(A.call) .. ',"version":' .. A.version .. '}')
  call('SET', P .. 'lora_call:' .. A.call, h.id .. ' ' .. number)
  keep(A.key)
  for _, key in ipairs(A.others) do keep(key) end
  apply(h, {version = number, base = A.base or ''})
  enter(h)
  return {'created', unpack(record(h, true))}
end

function verbs.published()
  local old = call('GET', P .. 'lora_call:' .. A.call)
  local h = old and own(string.match(old, '^%S+'))
  if not h then return {'missing'} end
  return {'ok', unpack(record(h, true))}
end

function verbs.trained()
  local old = call('GET', P .. 'lora_call:' .. A.call)
  local h = old and read(string.match(old, '^%S+'))
  if not visible(h) then return {'missing'} end
  return {'ok', unpack(record(h, true))}
end

function verbs.has_name()
  return {call('HEXISTS', P .. 'lora_names:' .. A.owner, A.fold) == 1 and 'yes' or 'no'}
end

function verbs.update()
  local h = own(A.id)
  if not h then return {'missing'} end
  if A.fold and A.fold ~= h.fold and call('HEXISTS', names(h), A.fold) == 1 then
    return {'taken'}
  end
  if late(h) then return {'late'} end
  leave(h)
  apply(h, {name = A.name, fold = A.fold})
  enter(h)
  return {'ok', unpack(record(h, true))}
end

-- Hidden at once; its files stay for those who use it already.
function verbs.delete()
  local h = read(A.id)
  if not h or h.owner ~= A.owner or (h.deleted and h.deleted ~= A.rid) then return {'missing'} end
  leave(h)
  set(h, {deleted = A.rid})
  call('ZADD', P .. 'lora_deleted', int(NOW), h.id)
  return {'ok', unpack(record(h, true))}
end

-- Readers ------------------------------------------------------------------------------------------

function verbs.get()
  local h = read(A.id)
  if not visible(h) then return {'missing'} end
  return {'ok', unpack(record(h, true))}
end

local function listed(h)
  return visible(h) and (not A.base or h.base == A.base)
    and (not A.visibility or h.visibility == A.visibility)
    and (not A.prefix or string.sub(h.fold, 1, #A.prefix) == A.prefix)
end

-- The next ids below a creation number, newest first, of all the lists that are asked for.
local function below(seq)
  local found, seen = {}, {}
  for _, list in ipairs({'own:' .. A.owner, not A.mine and 'public' or nil}) do
    local page = call('ZREVRANGEBYSCORE', P .. 'loras:' .. list, seq, '-inf', 'WITHSCORES',
      'LIMIT', 0, LIST_BATCH)
    for i = 1, #page, 2 do
      if not seen[page[i]] then found[#found + 1] = {page[i], tonumber(page[i + 1])} end
      seen[page[i]] = true
    end
  end
  table.sort(found, function(a, b) return a[2] > b[2] end)
  return found
end

function verbs.list()
  local out, last, scanned = {'ok', ''}, A.before, 0
  while scanned < MAX_SCANNED do
    local found = below(last and '(' .. last or '+inf')
    for i = 1, math.min(#found, LIST_BATCH) do
      if #out - 2 == A.limit then
        out[2] = last
        return out
      end
      local h = read(found[i][1])
      if listed(h) then out[#out + 1] = record(h) end
      last = int(found[i][2])
      scanned = scanned + 1
    end
    if #found == 0 then return out end
  end
  out[2] = last
  return out
end

-- Names that somebody may have meant.
function verbs.names()
  local out = {'ok'}
  local function add(ids)
    for i = 1, math.min(#ids, MAX_NAMES) do
      local name = call('HGET', P .. 'lora:' .. ids[i], 'name')
      if name then out[#out + 1] = name end
    end
  end
  add(call('HVALS', P .. 'lora_names:' .. A.owner))
  add(call('ZREVRANGE', P .. 'loras:public', 0, MAX_NAMES - 1))
  return out
end

-- Users --------------------------------------------------------------------------------------------

local function seek(wanted)
  local id = wanted.id or call('HGET', P .. 'lora_names:' .. A.owner, wanted.fold)
    or call('ZRANGE', P .. 'lora_public:' .. wanted.fold, 0, 0)[1]
  local h = id and read(id)
  return visible(h) and h or nil
end

-- All of them, from now on in use by the task, or none.
function verbs.hold()
  local out, found = {'ok'}, {}
  for i, wanted in ipairs(A.wanted) do
    local h = seek(wanted)
    if not h then return {'missing', i - 1} end
    local stored = version(h, wanted.version or h.version)
    if not stored then return {'no_version', i - 1, h.version} end
    found[i] = h
    out[#out + 1] = {h.id, h.name, stored}
  end
  for _, h in ipairs(found) do
    call('SADD', P .. 'lora_users:' .. h.id, A.task)
    call('SADD', P .. 'lora_held:' .. A.task, h.id)
  end
  call('ZADD', P .. 'lora_holds', int(NOW), A.task)
  return out
end

-- {task, microseconds since its hold}, the oldest first.
function verbs.holds()
  local out = {'ok'}
  local found = call('ZRANGE', P .. 'lora_holds', 0, MAX_HOLDS - 1, 'WITHSCORES')
  for i = 1, #found, 2 do
    out[#out + 1] = {found[i], int(NOW - tonumber(found[i + 1]))}
  end
  return out
end

function verbs.release()
  for _, task in ipairs(A.tasks) do
    for _, id in ipairs(call('SMEMBERS', P .. 'lora_held:' .. task)) do
      call('SREM', P .. 'lora_users:' .. id, task)
    end
    call('DEL', P .. 'lora_held:' .. task)
    call('ZREM', P .. 'lora_holds', task)
  end
  return {'ok'}
end

return verbs[ARGV[1]]()
