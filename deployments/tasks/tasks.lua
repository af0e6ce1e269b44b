-- Every read and write of a task, each verb atomic.
--
-- KEYS[1] is the prefix "{name}:" of all keys; ARGV[1] the verb; ARGV[2] its arguments as JSON.
-- TRANSITIONS, TERMINAL, KINDS, PAUSABLE and VERSION are put before this text from model.py.
-- Times are microseconds of the server's own clock, durations microseconds. A verb answers
-- {word, ...}. redis-py repeats a call whose reply was lost, so each verb run twice with the same
-- arguments leaves what one run leaves and answers the same: by the task's id and fence, or by `rid`,
-- the caller's own id of the call.
--
-- task:<id>       hash: the record. `did:<fence>` says how that claim ended.
-- queue:<q>       zset of queued ids by `score`; scheduled:<q> by `not_before`; running:<q> by lease;
--                 paused:<q> by the time of the pause
-- line:<q>:<line> zset of queued ids by `seq`, a line being `<priority>:<owner>`; see Shares
-- share:<q>       zset of lines that wait, by turn; spent:<q> of idle ones; turn:<q> the latest taken
-- ended           zset of ended ids by end, for the expiry; all:<status>:<kind> and
--                 own:<status>:<kind>:<owner> zsets by creation (`*` = any), for listings
-- events:<id>     stream; watch:<id> someone reads it; wake:<q> one-entry stream, grows with work
-- hurry:<id>      it is to end with what is there; options:, calls:<owner>, stop:<call>: see caller.py
-- idem:<digest>   hash task, fingerprint; tomb:<id> last fence of a deleted task
-- callbacks       zset of task ids by next try; callback:<id> hash
-- replay:<rid>    what a call answered, for its repetition
-- pulse           when work was last looked after; pulse:back is there for a lease after a long gap

local P, A = KEYS[1], cjson.decode(ARGV[2])
local call = redis.call
local clock = call('TIME')
local NOW = clock[1] * 1000000 + clock[2]

local MAX_EVENTS, EVENTS_TTL_S = 256, 3600
local REPLAY_TTL_S, TOMB_TTL_S, DAMAGED_TTL_S = 120, 86400, 7 * 86400
local SWEEP_BATCH, MAX_BACKOFF = 100, 3600 * 1000000
local PRIORITY_STEP, ABOVE_ALL = 2 ^ 44, 101 -- seq < 2^44: scores stay exact in a double
local STORE_GAP = 5 * 1000000
local FRONT = -ABOVE_ALL * PRIORITY_STEP -- what was moved to the front has a lower score
local TURN = 2 ^ 20
local PASS = 1000 * TURN -- so many turns a priority is worth

local function int(x) return string.format('%.0f', x) end
local function num(h, field) return tonumber(h[field]) or 0 end

-- The record ---------------------------------------------------------------------------------------

local function read(id)
  local kind = call('TYPE', P .. 'task:' .. id).ok
  if kind == 'none' then return nil end
  if kind ~= 'hash' then return {id = id, not_a_hash = true} end
  local flat, h = call('HGETALL', P .. 'task:' .. id), {}
  for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
  h.id = id
  return h
end

local function flat(h)
  local out = {}
  for field, value in pairs(h) do
    out[#out + 1] = field
    out[#out + 1] = tostring(value)
  end
  return out
end

local function set(h, changes)
  local out = {}
  for field, value in pairs(changes) do
    if type(value) == 'number' then value = int(value) end
    out[#out + 1] = field
    out[#out + 1] = value
    h[field] = value
  end
  call('HSET', P .. 'task:' .. h.id, unpack(out))
end

local function unset(h, field)
  if h[field] then
    h[field] = nil
    call('HDEL', P .. 'task:' .. h.id, field)
  end
end

local function find(id, owner)
  local h = read(id)
  if h and owner and h.owner ~= owner then return nil end
  return h
end

local function recall()
  local text = call('GET', P .. 'replay:' .. A.rid)
  return text and cjson.decode(text)
end

local function remember(answer)
  call('SET', P .. 'replay:' .. A.rid, cjson.encode(answer), 'EX', REPLAY_TTL_S)
end

-- Indices and events -------------------------------------------------------------------------------

local woken = {}

local function place(h)
  if h.status == 'queued' then return 'queue:' .. h.queue, h.score end
  if h.status == 'scheduled' then return 'scheduled:' .. h.queue, h.not_before end
  if h.status == 'running' then return 'running:' .. h.queue, h.lease end
  if h.status == 'paused' then return 'paused:' .. h.queue, h.paused end
  return 'ended', h.finished
end

local function lists(h)
  local out = {}
  for _, status in ipairs({'*', h.status}) do
    for _, kind in ipairs({'*', h.kind}) do
      out[#out + 1] = 'all:' .. status .. ':' .. kind
      out[#out + 1] = 'own:' .. status .. ':' .. kind .. ':' .. h.owner
    end
  end
  return out
end

-- Shares: owners of one queue take turns, by start-time fair queueing (Goyal, Vin and Cheng, 1996).
-- Each line's next task has a turn, and each task takes one; a line that begins to wait gets the
-- latest turn, so an owner neither saves up turns nor is held to those it took while alone. A
-- priority is worth PASS turns: so long higher ones pass, then lower ones take turns with them.

local function line_of(h) return h.priority .. ':' .. h.owner end

local function worth(line) return (tonumber(string.match(line, '^%-?%d+')) or 0) * PASS end

local function latest_turn(queue) return tonumber(call('GET', P .. 'turn:' .. queue) or '') or 0 end

-- The turn of a line's next task; `idle` if none waits.
local function turn_of(queue, line)
  local score = call('ZSCORE', P .. 'share:' .. queue, line)
  if score then return tonumber(score) + worth(line) end
  -- one part of a turn more: of lines that begin at the same turn the first to come is the first
  local spent = tonumber(call('ZSCORE', P .. 'spent:' .. queue, line) or '') or 0
  return math.max(latest_turn(queue) + 1, spent), 'idle'
end

local function line_up(h)
  local line = line_of(h)
  local turn, idle = turn_of(h.queue, line)
  if idle then
    call('SET', P .. 'turn:' .. h.queue, int(latest_turn(h.queue) + 1))
    call('ZREM', P .. 'spent:' .. h.queue, line)
  end
  -- what comes back gives its turn back
  if h.took_turn then turn = turn - TURN end
  unset(h, 'took_turn')
  call('ZADD', P .. 'line:' .. h.queue .. ':' .. line, h.seq, h.id)
  call('ZADD', P .. 'share:' .. h.queue, int(turn - worth(line)), line)
end

local function step_out(queue, line, id)
  local key = P .. 'line:' .. queue .. ':' .. line
  if call('ZREM', key, id) == 0 or call('EXISTS', key) == 1 then return end
  local turn = turn_of(queue, line)
  call('ZREM', P .. 'share:' .. queue, line)
  if turn > latest_turn(queue) then call('ZADD', P .. 'spent:' .. queue, int(turn), line) end
end

local function take_turn(queue, line)
  local score = call('ZINCRBY', P .. 'share:' .. queue, int(TURN), line)
  local turn = tonumber(score) + worth(line) - TURN
  if turn <= latest_turn(queue) then return end
  call('SET', P .. 'turn:' .. queue, int(turn))
  call('ZREMRANGEBYSCORE', P .. 'spent:' .. queue, '-inf', int(turn))
end

local function in_front(h) return num(h, 'score') < FRONT end

local function enter(h)
  local key, score = place(h)
  call('ZADD', P .. key, score, h.id)
  for _, list in ipairs(lists(h)) do call('ZADD', P .. list, h.seq, h.id) end
  if h.status ~= 'queued' then return end
  if not in_front(h) then line_up(h) end
  woken[h.queue] = true
end

local function leave(h)
  if h.status == 'queued' then step_out(h.queue, line_of(h), h.id) end
  call('ZREM', P .. place(h), h.id)
  for _, list in ipairs(lists(h)) do call('ZREM', P .. list, h.id) end
end

-- Events inform; a stream that cannot be written must not stop the task itself.
local function event(h, kind, data)
  local id = redis.pcall('XADD', P .. 'events:' .. h.id, 'MAXLEN', MAX_EVENTS, '*',
    'type', kind, 'data', data)
  return type(id) == 'string' and id or nil
end

local function drop_preview(h)
  if h.preview then redis.pcall('XDEL', P .. 'events:' .. h.id, h.preview) end
  unset(h, 'preview')
end

local function tell_status(h)
  local failure = h.error and ',"error":' .. h.error or ''
  event(h, 'status', '{"status":"' .. h.status .. '","attempt":' .. h.attempt .. failure .. '}')
end

local function finish(h)
  drop_preview(h)
  if h.status ~= 'failed' then unset(h, 'error') end
  if (h.callback_url or '') ~= '' then
    call('HSET', P .. 'callback:' .. h.id, 'webhook_id',
      'msg_' .. string.gsub(h.id, '[^%w]', '') .. '_' .. h.status,
      'attempt', 0, 'fence', 0, 'state', 'due')
    call('ZADD', P .. 'callbacks', int(NOW), h.id)
  end
end

-- The only way a status changes.
local function move(h, to, changes)
  if not TRANSITIONS[h.status][to] then error('no way from ' .. h.status .. ' to ' .. to) end
  leave(h)
  changes.status = to
  changes.updated = NOW
  if TERMINAL[to] then changes.finished = NOW end
  set(h, changes)
  if TERMINAL[to] then finish(h) end
  enter(h)
  tell_status(h)
  if TERMINAL[to] then call('EXPIRE', P .. 'events:' .. h.id, EVENTS_TTL_S) end
end

-- Damaged records ----------------------------------------------------------------------------------

local SAFE = {
  kind = 'image', owner = '', input = '{}', outputs = '[]', priority = '0', seq = '0', score = '0',
  fence = '0', attempt = '0', errors = '0', lost = '0', step = '0', steps = '0',
}

local function sound(h, field)
  local value = h[field]
  if not value then return field == 'outputs' end
  if field == 'owner' then return true end
  if field == 'kind' then return KINDS[value] end
  if field == 'input' or field == 'outputs' then
    local ok, decoded = pcall(cjson.decode, value)
    local first = field == 'input' and '^%s*{' or '^%s*%['
    return ok and type(decoded) == 'table' and string.find(value, first)
  end
  return #value < 18 and string.find(value, '^%-?%d+$')
end

local function damage(h, queue)
  if h.not_a_hash then return 'it is not a hash' end
  if not h.queue or h.queue ~= queue then return 'queue' end
  if not TRANSITIONS[h.status or ''] then return 'status' end
  for _, field in ipairs({'created', 'updated'}) do
    if not sound(h, field) then return field end
  end
  for field in pairs(SAFE) do
    if not sound(h, field) then return field end
  end
end

-- Someone else wrote into the record: it ends as failed, readable, and its old text is kept aside.
local function bury(h, queue, status, why)
  if h.not_a_hash then
    call('RENAME', P .. 'task:' .. h.id, P .. 'damaged:' .. h.id)
    call('EXPIRE', P .. 'damaged:' .. h.id, DAMAGED_TTL_S)
    h = {id = h.id}
  end
  local repaired = {queue = queue, status = status}
  for field, default in pairs(SAFE) do
    if not sound(h, field) then repaired[field] = default end
  end
  for _, field in ipairs({'created', 'updated'}) do
    if not sound(h, field) then repaired[field] = NOW end
  end
  if not sound(h, 'started') then unset(h, 'started') end
  if not sound(h, 'not_before') then unset(h, 'not_before') end
  set(h, repaired)
  move(h, 'failed', {fence = num(h, 'fence') + 1, error = cjson.encode({
    code = 'record_damaged', message = 'The stored task was damaged: ' .. why .. '.'})})
end

-- For a write: never a damaged record that has not ended.
local function hold(id, owner)
  local h = find(id, owner)
  local why = h and not TERMINAL[h.status or ''] and damage(h, h.queue)
  if not why then return h end
  bury(h, h.queue or '', 'queued', why)
  return find(id, owner)
end

-- Takes one id out of an index; answers its record if the index and the record agree.
local function take(index, queue, id, status)
  call('ZREM', P .. index .. queue, id)
  local h = read(id)
  if not h then return nil end
  local why = damage(h, queue)
  if why and (h.not_a_hash or not TERMINAL[h.status or '']) then
    bury(h, queue, status == 'scheduled' and 'queued' or status, why)
    return nil
  end
  return h.status == status and h or nil
end

-- Queues -------------------------------------------------------------------------------------------

local function size(key) return call('ZCARD', P .. key) end

-- Seconds are only as good as the past: (mean run, how many run side by side).
local function pace(queue)
  local run = tonumber(call('HGET', P .. 'stats:' .. queue, 'run') or '')
  local workers = call('ZCOUNT', P .. 'workers:' .. queue, int(NOW), '+inf')
  return run, math.max(size('running:' .. queue), workers, 1)
end

-- How a claim ended, for its repetition. Old ones go: a task handed back for ever stays small.
local function mark(h, changes, fence, verb)
  changes['did:' .. int(fence)] = verb
  unset(h, 'did:' .. int(fence - 8))
  return changes
end

local function lose(h)
  local lost = num(h, 'lost') + 1
  local changes = mark(h, {lost = lost, worker = ''}, h.fence, 'lost')
  if lost < A.max_lost then return move(h, 'queued', changes) end
  changes.error = cjson.encode({code = 'worker_lost', message =
    'The task was given up: ' .. lost .. ' workers running it stopped answering.'})
  move(h, 'failed', changes)
end

-- A lease also runs out while the store itself is away. No one looked after work for long then, so
-- its holder gets one more term to come back, once an attempt; whichever worker or queue is first to
-- notice, the others' work has it too. Half a lease is long: the way back takes seconds as well.
local function pulse()
  local last = tonumber(call('GET', P .. 'pulse') or '') or NOW
  call('SET', P .. 'pulse', int(NOW))
  if NOW - last > math.max(A.lease / 2, STORE_GAP) then
    call('SET', P .. 'pulse:back', 1, 'PX', int(math.ceil(A.lease / 1000)))
  end
end

local function drop_paused(queue)
  local old = call('ZRANGEBYSCORE', P .. 'paused:' .. queue, '-inf', int(NOW - A.retention),
    'LIMIT', 0, SWEEP_BATCH)
  for _, id in ipairs(old) do
    local h = take('paused:', queue, id, 'paused')
    if h then
      move(h, 'failed', {error = cjson.encode({code = 'paused_too_long', message =
        'The task was given up: it was paused for ' .. int(A.retention / 1000000) .. ' seconds.'})})
    end
  end
  return #old
end

local function sweep(queue)
  pulse()
  local away, moved = call('EXISTS', P .. 'pulse:back') == 1, 0
  local due = call('ZRANGEBYSCORE', P .. 'scheduled:' .. queue, '-inf', int(NOW),
    'LIMIT', 0, SWEEP_BATCH)
  for _, id in ipairs(due) do
    local h = take('scheduled:', queue, id, 'scheduled')
    if h then move(h, 'queued', {}) end
    moved = moved + 1
  end
  local late = call('ZRANGEBYSCORE', P .. 'running:' .. queue, '-inf', int(NOW),
    'LIMIT', 0, SWEEP_BATCH)
  for _, id in ipairs(late) do
    local h = take('running:', queue, id, 'running')
    if h and away and h.graced ~= h.fence then
      set(h, {graced = h.fence, lease = NOW + A.lease})
      call('ZADD', P .. 'running:' .. queue, h.lease, id)
    else
      if h then lose(h) end
      moved = moved + 1
    end
  end
  return moved + drop_paused(queue)
end

local function start(h)
  local fence = num(h, 'fence') + 1
  unset(h, 'graced')
  unset(h, 'figures')
  move(h, 'running', {fence = fence, attempt = fence, worker = A.worker, lease = NOW + A.lease,
    started = NOW, step = 0, steps = 0})
end

-- Its own workers will take it: two releases run side by side during an update.
local function of_newer_release(id)
  local version = redis.pcall('HGET', P .. 'task:' .. id, 'v')
  return type(version) == 'string' and (tonumber(version) or 0) > VERSION
end

local function valid(h)
  return h and h.status == 'running' and h.fence == int(A.fence) and not damage(h, h.queue)
end

local function did(h, verb)
  return h and h['did:' .. int(A.fence)] == verb
end

local verbs = {}

-- Clients ------------------------------------------------------------------------------------------

local function known()
  local old = A.idem and call('HMGET', P .. 'idem:' .. A.idem, 'task', 'fingerprint')
  if old and old[1] then
    if old[2] ~= A.fingerprint then return {'conflict'} end
    local h = read(old[1])
    if h then return {h.id == A.id and 'created' or 'known', flat(h)} end
  end
  local h = read(A.id)
  if h then return {h.owner == A.owner and 'created' or 'gone', flat(h)} end
  if call('EXISTS', P .. 'tomb:' .. A.id) == 1 then return {'gone'} end
end

function verbs.create()
  local answer = known()
  if answer then return answer end
  local kept = size('queue:' .. A.queue) + size('scheduled:' .. A.queue)
    + size('paused:' .. A.queue)
  if kept >= A.max_queue then
    local run, side_by_side = pace(A.queue)
    return {'full', int(run and run / side_by_side or 0)}
  end
  local seq = call('INCR', P .. 'seq')
  local due = math.max(NOW + A.delay, A.not_before or 0)
  local h = {id = A.id}
  set(h, {
    v = VERSION, id = A.id, kind = A.kind, queue = A.queue, owner = A.owner, input = A.input,
    priority = A.priority, seq = seq, score = seq - A.priority * PRIORITY_STEP,
    status = due > NOW and 'scheduled' or 'queued', fence = 0, attempt = 0, errors = 0, lost = 0,
    step = 0, steps = 0, created = NOW, updated = NOW,
  })
  if due > NOW then set(h, {not_before = due}) end
  if A.callback_url then set(h, {callback_url = A.callback_url}) end
  if A.idem then
    set(h, {idem = A.idem})
    call('HSET', P .. 'idem:' .. A.idem, 'task', A.id, 'fingerprint', A.fingerprint)
  end
  enter(h)
  tell_status(h)
  return {'created', flat(h)}
end

function verbs.get()
  local h = find(A.task, A.owner)
  if not h then return {'missing'} end
  return {'ok', flat(h)}
end

function verbs.list()
  local status, kind = A.status or '*', A.kind or '*'
  local key = A.owner and 'own:' .. status .. ':' .. kind .. ':' .. A.owner
    or 'all:' .. status .. ':' .. kind
  local before = A.before and '(' .. A.before or '+inf'
  local found = call('ZREVRANGEBYSCORE', P .. key, before, '-inf', 'WITHSCORES',
    'LIMIT', 0, A.limit + 1)
  local out, last = {'ok', ''}, ''
  for i = 1, math.min(#found, A.limit * 2), 2 do
    local h = find(found[i], A.owner)
    -- An index may still name what a damaged record no longer says.
    local is = h and (h.status == status or status == '*') and (h.kind == kind or kind == '*')
    if is then out[#out + 1] = flat(h) end
    last = int(tonumber(found[i + 1]))
  end
  if #found > A.limit * 2 then out[2] = last end
  return out
end

function verbs.cancel()
  local h = hold(A.task, A.owner)
  if not h then return {'missing'} end
  if TERMINAL[h.status] and h.status ~= 'canceled' then return {'ended', h.status} end
  if h.status ~= 'canceled' then move(h, 'canceled', {fence = num(h, 'fence') + 1}) end
  return {'ok', flat(h)}
end

-- Ends what waits and nobody is left to take.
function verbs.give_up()
  local h = hold(A.task)
  if not h then return {'missing'} end
  if h.status == 'queued' then
    move(h, 'failed', {error = A.error})
  elseif h.status ~= 'failed' then
    return {'not_queued', h.status}
  end
  return {'ok', flat(h)}
end

local function erase(h)
  for field, default in pairs(SAFE) do
    if not sound(h, field) then h[field] = default end
  end
  leave(h)
  call('SET', P .. 'tomb:' .. h.id, h.fence or '0', 'EX', TOMB_TTL_S)
  call('ZREM', P .. 'callbacks', h.id)
  if h.idem and call('HGET', P .. 'idem:' .. h.idem, 'task') == h.id then
    call('DEL', P .. 'idem:' .. h.idem)
  end
  call('DEL', P .. 'task:' .. h.id, P .. 'events:' .. h.id, P .. 'watch:' .. h.id,
    P .. 'callback:' .. h.id)
end

function verbs.delete()
  local again = recall()
  if again then return {'ok', again} end
  local h = hold(A.task, A.owner)
  if not h then return {'missing'} end
  if not TERMINAL[h.status] then return {'alive', h.status} end
  erase(h)
  remember(flat(h))
  return {'ok', flat(h)}
end

local function waiting(h)
  return h and (h.status == 'queued' or h.status == 'scheduled')
end

local function reorder(h, changes)
  changes.updated = NOW
  if h.status == 'queued' then step_out(h.queue, line_of(h), h.id) end
  set(h, changes)
  if h.status ~= 'queued' then return end
  call('ZADD', P .. 'queue:' .. h.queue, h.score, h.id)
  if not in_front(h) then line_up(h) end
end

function verbs.priority()
  local h = hold(A.task, A.owner)
  if not h then return {'missing'} end
  if not waiting(h) then return {'not_queued', h.status} end
  local score = num(h, 'seq') - A.priority * PRIORITY_STEP
  if h.score ~= int(score) then reorder(h, {priority = A.priority, score = score}) end
  return {'ok', flat(h)}
end

function verbs.front()
  local h = hold(A.task, A.owner)
  if not h then return {'missing'} end
  if not waiting(h) then return {'not_queued', h.status} end
  local first = call('ZRANGE', P .. 'queue:' .. h.queue, 0, 0)[1]
  if h.front ~= A.rid and first ~= h.id then
    local turn = call('INCR', P .. 'front')
    reorder(h, {front = A.rid, score = FRONT - turn})
  end
  return {'ok', flat(h)}
end

-- What runs stops at its next heartbeat; till then, and for ever, its writes are refused.
function verbs.pause()
  local h = hold(A.task, A.owner)
  if not h then return {'missing'} end
  if h.pause == A.rid or h.status == 'paused' then return {'ok', flat(h)} end
  if not PAUSABLE[h.kind] then return {'not_pausable', h.kind} end
  if TERMINAL[h.status] then return {'ended', h.status} end
  move(h, 'paused', {pause = A.rid, paused = NOW, worker = ''})
  return {'ok', flat(h)}
end

-- To its old place in the queue.
function verbs.resume()
  local h = hold(A.task, A.owner)
  if not h then return {'missing'} end
  if h.resume == A.rid then return {'ok', flat(h)} end
  if h.status ~= 'paused' then return {'not_paused', h.status} end
  move(h, 'queued', {resume = A.rid})
  return {'ok', flat(h)}
end

-- How many start before this one if nothing more comes. Costs as much as there are lines.
local function ahead_of(h)
  local queue, line = h.queue, line_of(h)
  local front = '(' .. int(math.min(FRONT, num(h, 'score')))
  local ahead = call('ZCOUNT', P .. 'queue:' .. queue, '-inf', front)
  if in_front(h) then return ahead end
  local before = call('ZCOUNT', P .. 'line:' .. queue .. ':' .. line, '-inf', '(' .. h.seq)
  local mine = turn_of(queue, line) - worth(line) + before * TURN
  local others = call('ZRANGEBYSCORE', P .. 'share:' .. queue, '-inf', int(mine), 'WITHSCORES')
  for i = 1, #others, 2 do
    local other, lead = others[i], mine - tonumber(others[i + 1])
    if other ~= line then
      local turns = math.floor(lead / TURN)
      if lead % TURN > 0 or other < line then turns = turns + 1 end
      ahead = ahead + math.min(turns, size('line:' .. queue .. ':' .. other))
    end
  end
  return ahead + before
end

function verbs.position()
  local h = read(A.task)
  if not waiting(h) or damage(h, h.queue) then return {'none'} end
  local ahead = ahead_of(h)
  local run, side_by_side = pace(h.queue)
  if not run then return {'ok', ahead, ''} end
  local busy = size('running:' .. h.queue) > 0 and 1 or 0
  local hold = h.status == 'scheduled' and math.max(num(h, 'not_before') - NOW, 0) or 0
  return {'ok', ahead, int(hold + run * (1 + (ahead + busy) / side_by_side))}
end

-- What is due counts as queued: where no worker is left to queue it, this must bring one.
function verbs.depth()
  local due = call('ZCOUNT', P .. 'scheduled:' .. A.queue, '-inf', int(NOW))
  return {'ok', size('queue:' .. A.queue) + due, size('running:' .. A.queue),
    size('scheduled:' .. A.queue) - due}
end

-- Workers ------------------------------------------------------------------------------------------

-- Anything that is no number is claimed, and found to be damaged.
local function more_urgent(id, priority)
  local own = tonumber(redis.pcall('HGET', P .. 'task:' .. id, 'priority'))
  return not own or own > priority
end

-- What an older release queued, or someone else wrote, stands in no line.
local function line_up_strays()
  for _ = 1, SWEEP_BATCH do
    local id = call('ZRANGEBYSCORE', P .. 'queue:' .. A.queue, int(FRONT), '+inf', 'LIMIT', 0, 1)[1]
    if not id then return end
    local said = redis.pcall('HMGET', P .. 'task:' .. id, 'priority', 'owner')
    local line = said[1] and said[2] and said[1] .. ':' .. said[2] or ''
    if call('ZSCORE', P .. 'line:' .. A.queue .. ':' .. line, id) then return end
    if of_newer_release(id) then return end
    local h = read(id)
    if h and h.status == 'queued' and not damage(h, A.queue) then return line_up(h) end
    take('queue:', A.queue, id, 'queued')
  end
end

-- The next id and its line, '' for what was moved to the front; `passed`, by line, is left alone.
local function next_waiting(passed)
  local first = call('ZRANGEBYSCORE', P .. 'queue:' .. A.queue, '-inf', '(' .. int(FRONT),
    'LIMIT', passed[''] or 0, 1)[1]
  if first then return first, '' end
  local at = 0
  while true do
    local line = call('ZRANGE', P .. 'share:' .. A.queue, at, at)[1]
    if not line then return nil end
    local key, n = P .. 'line:' .. A.queue .. ':' .. line, passed[line] or 0
    local id = (not A.above or worth(line) > A.above * PASS) and call('ZRANGE', key, n, n)[1]
    if id then return id, line end
    at = at + 1
  end
end

function verbs.claim()
  local out, again = {'ok'}, recall()
  for _, pair in ipairs(again or {}) do
    local h = read(pair[1])
    if h and h.status == 'running' and h.fence == pair[2] then out[#out + 1] = flat(h) end
  end
  if again then return out end
  sweep(A.queue)
  line_up_strays()
  local taken, passed, skipped = {}, {}, 0
  while #taken < A.limit and skipped < SWEEP_BATCH do
    local id, line = next_waiting(passed)
    if not id then break end
    local urgent = line ~= '' or not A.above or more_urgent(id, A.above)
    if not urgent or of_newer_release(id) then
      passed[line] = (passed[line] or 0) + 1
      skipped = skipped + 1
    else
      local h = take('queue:', A.queue, id, 'queued')
      if h then
        unset(h, 'took_turn')
        if line ~= '' then
          take_turn(A.queue, line)
          set(h, {took_turn = 1})
        end
        start(h)
        out[#out + 1] = flat(h)
        taken[#taken + 1] = {h.id, h.fence}
      end
      step_out(A.queue, line, id)
    end
  end
  if #taken > 0 then remember(taken) end
  return out
end

function verbs.sweep()
  return {'ok', sweep(A.queue)}
end

-- When to look again: {the wake stream's last id, how many wait, microseconds to the next due time}.
function verbs.peek()
  local last = call('XREVRANGE', P .. 'wake:' .. A.queue, '+', '-', 'COUNT', 1)[1]
  local due = math.huge
  for _, index in ipairs({'scheduled:', 'running:'}) do
    local first = call('ZRANGE', P .. index .. A.queue, 0, 0, 'WITHSCORES')
    if first[2] then due = math.min(due, tonumber(first[2])) end
  end
  -- What only a newer release may take is not waited for in a busy loop.
  local first = call('ZRANGE', P .. 'queue:' .. A.queue, 0, 0)[1]
  local queued = first and not of_newer_release(first) and size('queue:' .. A.queue) or 0
  return {'ok', last and last[1] or '0-0', queued,
    due < math.huge and int(math.max(due - NOW, 0)) or ''}
end

local function renew(beat)
  A.fence = beat.fence
  local h = read(beat.task)
  if not valid(h) then return 'stale' end
  local watched = call('EXISTS', P .. 'watch:' .. h.id) == 1
  local changes = {lease = NOW + A.lease}
  local step, steps = num(h, 'step'), num(h, 'steps')
  if beat.step and beat.step >= step and (beat.step > step or beat.steps ~= steps) then
    changes.step, changes.steps, changes.updated = beat.step, beat.steps, NOW
    local told = beat.figures or {}
    if beat.figures then changes.figures = cjson.encode(told) end
    told.step, told.steps = beat.step, beat.steps
    if watched then event(h, 'progress', cjson.encode(told)) end
  end
  set(h, changes)
  call('ZADD', P .. 'running:' .. h.queue, h.lease, h.id)
  if call('EXISTS', P .. 'hurry:' .. h.id) == 1 then return 'hurried' end
  return watched and 'watched' or 'ok'
end

function verbs.renew()
  local out = {'ok'}
  for _, beat in ipairs(A.beats) do out[#out + 1] = renew(beat) end
  pulse()
  return out
end

function verbs.preview()
  local h = read(A.task)
  if not valid(h) then return {'stale'} end
  if h.preview_rid ~= A.rid then
    drop_preview(h)
    local id = event(h, 'preview', A.data)
    set(h, {preview_rid = A.rid, preview = id or '0-0'})
  end
  return {'ok'}
end

function verbs.succeed()
  local h = read(A.task)
  if did(h, 'succeed') then return {'ok'} end
  if not valid(h) then return {'stale'} end
  local key, run = P .. 'stats:' .. h.queue, NOW - num(h, 'started')
  local mean = tonumber(call('HGET', key, 'run') or '') or run
  call('HSET', key, 'run', int(mean + (run - mean) * 0.2))
  call('HINCRBY', key, 'runs', 1)
  local steps = A.steps or num(h, 'steps')
  local changes = {outputs = A.outputs, step = steps, steps = steps}
  move(h, 'succeeded', mark(h, changes, A.fence, 'succeed'))
  return {'ok'}
end

function verbs.fail()
  local h = read(A.task)
  if did(h, 'fail') then return {'ok', flat(h)} end
  if not valid(h) then return {'stale'} end
  local errors = num(h, 'errors') + 1
  local changes = mark(h, {errors = errors, error = A.error}, A.fence, 'fail')
  if not A.retryable or errors >= A.max_errors then
    move(h, 'failed', changes)
  else
    local backoff = math.min(A.backoff * 2 ^ (errors - 1), MAX_BACKOFF)
    changes.worker = ''
    if backoff > 0 then changes.not_before = NOW + backoff end
    move(h, backoff > 0 and 'scheduled' or 'queued', changes)
  end
  return {'ok', flat(h)}
end

function verbs.release()
  local h = read(A.task)
  if did(h, 'release') then return {'ok'} end
  if not valid(h) then return {'stale'} end
  move(h, 'queued', mark(h, {worker = ''}, A.fence, 'release'))
  return {'ok'}
end

function verbs.announce()
  local alive, infos = P .. 'workers:' .. A.queue, P .. 'worker_info:' .. A.queue
  for _, gone in ipairs(call('ZRANGEBYSCORE', alive, '-inf', int(NOW))) do
    call('ZREM', alive, gone)
    call('HDEL', infos, gone)
  end
  call('ZADD', alive, int(NOW + A.ttl), A.worker)
  call('HSET', infos, A.worker, A.info)
  return {'ok'}
end

function verbs.withdraw()
  call('ZREM', P .. 'workers:' .. A.queue, A.worker)
  call('HDEL', P .. 'worker_info:' .. A.queue, A.worker)
  return {'ok'}
end

function verbs.workers()
  local out = {'ok'}
  for _, worker in ipairs(call('ZRANGEBYSCORE', P .. 'workers:' .. A.queue, int(NOW), '+inf')) do
    out[#out + 1] = worker
    out[#out + 1] = call('HGET', P .. 'worker_info:' .. A.queue, worker) or '{}'
  end
  return out
end

-- Callbacks ----------------------------------------------------------------------------------------

function verbs.due_callbacks()
  local out = {'ok'}
  local again = recall()
  local ids = again or call('ZRANGEBYSCORE', P .. 'callbacks', '-inf', int(NOW),
    'LIMIT', 0, A.limit)
  for _, id in ipairs(ids) do
    local h, key = read(id), P .. 'callback:' .. id
    if not h or call('TYPE', key).ok ~= 'hash' then
      call('ZREM', P .. 'callbacks', id)
    else
      if not again then
        call('HINCRBY', key, 'attempt', 1)
        call('HINCRBY', key, 'fence', 1)
        call('HSET', key, 'sender', A.sender)
        call('ZADD', P .. 'callbacks', int(NOW + A.lease), id)
      end
      local job = call('HMGET', key, 'webhook_id', 'attempt', 'fence')
      out[#out + 1] = {flat(h), job[1], job[2], job[3]}
    end
  end
  if #ids > 0 and not again then remember(ids) end
  return out
end

-- Ends (`done`, `dead`) or puts off (`due`) one sending, if no later one has begun.
function verbs.callback()
  local key = P .. 'callback:' .. A.task
  local old = call('HMGET', key, 'fence', 'state', 'settled')
  if old[1] ~= int(A.fence) then return {'stale'} end
  if old[3] == old[1] then return {'ok'} end
  call('HSET', key, 'state', A.state, 'reason', A.reason, 'settled', int(A.fence))
  if A.state == 'due' then
    if A.uncounted then call('HINCRBY', key, 'attempt', -1) end
    call('ZADD', P .. 'callbacks', int(NOW + A.delay), A.task)
  else
    call('ZREM', P .. 'callbacks', A.task)
  end
  return {'ok'}
end

-- Expiry -------------------------------------------------------------------------------------------

function verbs.expire()
  local out = {'ok'}
  local again = recall()
  if again then
    for _, record in ipairs(again) do out[#out + 1] = record end
    return out
  end
  local old = call('ZRANGEBYSCORE', P .. 'ended', '-inf', int(NOW - A.retention),
    'LIMIT', 0, A.limit)
  local gone = {}
  for _, id in ipairs(old) do
    call('ZREM', P .. 'ended', id)
    local h = read(id)
    if h and not h.not_a_hash and TERMINAL[h.status or ''] then
      erase(h)
      gone[#gone + 1] = flat(h)
      out[#out + 1] = gone[#gone]
    elseif h and h.not_a_hash then
      call('DEL', P .. 'task:' .. id)
    end
  end
  if #gone > 0 then remember(gone) end
  return out
end

local answer = verbs[ARGV[1]]()
for queue in pairs(woken) do
  redis.pcall('XADD', P .. 'wake:' .. queue, 'MAXLEN', 1, '*', 'at', int(NOW))
end
return answer
