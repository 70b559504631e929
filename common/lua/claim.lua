-- Hands out up to n trials of one group: PENDING -> RUNNING. Repeats its answer for the same request of the same worker.
-- ARGV  worker, n, request id, "1" if only of a group, that group, "1" if a suspect may be handed out, token, lease (ms), live (ms), machine or ""
-- Reads trials HASH, groups HASH; writes states HASH, pending ZSET, open ZSET, counts HASH, leases ZSET, progress HASH, workers ZSET,
-- requests HASH, machines HASH, doubts HASH; for a trial whose state is damaged also results HASH, endings LIST.
-- Returns JSON [token, alone, then per trial: id, attempt, configuration], nil for nothing; where the worker's machine gets no more trials:
-- JSON [false, "aside" or "wait", reason of the first that raised, then the trials that ended well elsewhere].

local worker, wanted, request, refill, group, suspects, token = unpack(ARGV, 1, 7)
local lease, live_ms, machine = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
local now = now_ms()
local LOOK = 64 -- trials a look, where some are passed over

local function answer(ids, trials, with, alone)
  local reply = { with, alone }
  local configurations = fields(TRIALS, ids)
  for n, id in ipairs(ids) do
    reply[#reply + 1] = id
    reply[#reply + 1] = trials[n].a
    reply[#reply + 1] = configurations[n] or ''
  end
  return cjson.encode(reply)
end

local function repeated(last)
  local ids, trials = {}, {}
  for _, id in ipairs(last.ids) do
    local trial = state_in(redis.call('HGET', STATES, id))
    if trial and trial.s == 'running' and trial.t == last.token then
      ids[#ids + 1] = id
      trials[#trials + 1] = trial
    end
  end
  return answer(ids, trials, last.token, last.alone)
end

-- Whether a machine that was put aside may try one trial: where no other is able, every live_ms, first after it has been alone for so long,
-- so that it does not fail what another, which is just being started again, would complete. What it completes clears it. Its p is the time
-- of its last try, or since when it has been alone.
local function may_probe(known)
  local since = natural(known.p, now + 1) and known.p
  if next(able_machines(now, live_ms)) then
    if since then
      known.p = nil
      doubt(machine, known)
    end
    return false
  end
  local due = since and now - since >= live_ms
  if refill == '1' or since and not due then return false end
  known.p, known.s = now, due and STRIKES or known.s
  doubt(machine, known)
  return due
end

-- A worker that comes new, or again, clears its machine; a machine that was put aside gets nothing while another is able, and one on which
-- the last trials all raised waits for what others say of them, as long as there is one that is in no such doubt itself.
local probes = false
local function barred()
  if machine == '' then return nil end
  if redis.call('HSETNX', MACHINES, worker, machine) == 1 then
    redis.call('PEXPIRE', MACHINES, FORGET_MS)
    if doubts()[machine] then doubt(machine, nil) end
  end
  local known = doubts()[machine]
  if not known then return nil end
  if put_aside(machine) then
    probes = may_probe(known)
    return not probes and cjson.encode({ false, 'aside', known.y, unpack(known.n) })
  end
  if math.min(known.o, known.f) < STRIKES then return nil end
  for other in pairs(able_machines(now, live_ms)) do
    local theirs = doubts()[other]
    if other ~= machine and (not theirs or math.min(theirs.o, theirs.f) < STRIKES) then return cjson.encode({ false, 'wait', known.y }) end
  end
  return nil
end

-- The machines of the other live workers, but for those put aside; '' for one that is not known. Read at first need.
local of_others
local function machines_of_others()
  if not of_others then
    of_others = {}
    local names = redis.call('ZRANGEBYSCORE', WORKERS, whole(now - live_ms), '+inf')
    for n, other in ipairs(fields(MACHINES, names)) do
      if names[n] ~= worker and not (other and put_aside(other)) then of_others[other or ''] = true end
    end
  end
  return of_others
end

-- Not what raised on this machine or was slow with this worker, as long as another could take it.
local function may_try(trial)
  if raised_on(trial, machine) and elsewhere(trial, machine, now, live_ms) then return false end
  if trial.v ~= worker then return true end
  for other in pairs(machines_of_others()) do
    if not raised_on(trial, other) then return false end
  end
  return true
end

-- Trials that wait, but whose state does not say so -> their queue.
local buried = {}

-- The first trials of a queue that this worker may have.
local function pick(queue, limit)
  local ids, trials, offset = {}, {}, 0
  local low, high = whole(queue * PER_STAGE), whole(queue * PER_STAGE + PER_STAGE - 1)
  while #ids < limit do
    local asked = math.max(limit - #ids, offset > 0 and LOOK or 0) -- the first look mostly is the last
    local found = redis.call('ZRANGEBYSCORE', PENDING, low, high, 'LIMIT', offset, asked)
    for n, raw in ipairs(fields(STATES, found)) do
      local trial = state_in(raw)
      if not trial or trial.s ~= 'pending' or queue_of(trial) ~= queue then
        buried[found[n]] = queue
      elseif #ids < limit and may_try(trial) then
        ids[#ids + 1] = found[n]
        trials[#trials + 1] = trial
      end
    end
    if #found < asked then break end
    offset = offset + asked
  end
  return ids, trials
end

-- From the first queue in order that has something for this worker.
local function choose(limit)
  local position = 0
  while true do
    local member = redis.call('ZRANGE', OPEN, position, position)[1]
    if not member then return {}, {}, false end
    local queue = tonumber(member)
    local suspect = natural(queue, MOST_QUEUES) and queue % PER_STAGE == 0
    if natural(queue, MOST_QUEUES) and (not suspect or suspects == '1') then
      local ids, trials = pick(queue, suspect and 1 or limit)
      if #ids > 0 then return ids, trials, suspect end
    end
    position = position + 1
  end
end

-- From this group alone, the first stage that has some.
local function more_of(limit)
  for stage = 0, math.min(tonumber(redis.call('HGET', GROUPS, '#') or 0) or 0, MOST_STAGES) - 1 do
    local queue = tonumber(redis.call('HGET', GROUPS, stage .. ':' .. group))
    if natural(queue, MOST_QUEUES) then
      local ids, trials = pick(queue, limit)
      if #ids > 0 then return ids, trials, false end
    end
  end
  return {}, {}, false
end

seen(worker, now)
local last = redis.call('HGET', REQUESTS, worker)
last = last and table_in(last)
if last and last.request == request and text(last.token) and list_of(last.ids, text) then return repeated(last) end

local bar = barred()
if bar then
  remember()
  return bar
end

local live = redis.call('ZCOUNT', WORKERS, whole(now - live_ms), '+inf')
local limit = math.min(tonumber(wanted), math.ceil(redis.call('ZCARD', PENDING) / live))
if limit < 1 then
  remember()
  return nil
end
local ids, trials, alone = (refill == '1' and more_of or choose)(probes and 1 or limit)
for id, queue in pairs(buried) do bury(id, 'pending', queue) end
if #ids == 0 then
  save()
  return nil
end

for n, id in ipairs(ids) do
  local trial = trials[n]
  dequeue(id, trial)
  trial.a, trial.t, trial.w, trial.c, trial.o = trial.a + 1, token, worker, now, alone or nil
  move(id, trial, 'running')
  due[#due + 1] = whole(now + lease)
  due[#due + 1] = id
end
save()
redis.call('HSET', REQUESTS, worker, cjson.encode({ request = request, token = token, alone = alone, ids = ids }))
return answer(ids, trials, token, alone)
