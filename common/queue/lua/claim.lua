-- Claims up to n trials of one group: PENDING -> RUNNING. Except in a refill, they share a budget.
-- The same request of the same worker gets the same answer again.
-- ARGV  worker, n, request id, "1" for a refill (only trials of one group), that group, "1" if a
--       suspect may be handed out, token, lease (ms), live (ms), machine or ""
-- Reads trials HASH, groups HASH. Writes states HASH, pending ZSET, open ZSET, counts HASH,
-- leases ZSET, progress HASH, workers ZSET, requests HASH, machines HASH, doubts HASH; for a trial
-- whose state is damaged also results HASH, endings LIST.
-- Returns JSON [token, alone, then per trial: id, attempt, configuration]; nil for nothing. If the
-- worker's machine gets no more trials: JSON [false, "aside" or "wait", reason of the first that
-- raised, then the trials that ended well elsewhere].

local worker, wanted, request, refill, group, suspects, token = unpack(ARGV, 1, 7)
local lease, live_ms, machine = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
local now = now_ms()
local LOOK = 64 -- trials per read, where some are skipped

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

-- Whether a machine that was put aside may try one trial. It may if no other machine is able, once
-- every live_ms, and for the first time after it has been alone for that long: another machine may
-- just be restarting, and would complete what this one fails. A trial that completes clears the
-- machine. The field p is the time of its last try, or since when it has been alone.
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

-- Whether this machine gets no trials now, and the reply that says why. A worker that starts, or
-- starts again, clears its machine. A machine that was put aside gets nothing as long as another
-- one is able. A machine on which the last trials all raised waits until other machines have tried
-- them, as long as there is another one without such a doubt.
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

-- Whether this machine may try a trial: not if it raised here, as long as another could take it.
local function may_try(trial)
  return not (raised_on(trial, machine) and elsewhere(trial, machine, now, live_ms))
end

-- Trials that are in a queue although their state does not say so -> their queue.
local buried = {}

-- The first trials of a queue that this worker may have.
local function pick(queue, limit)
  local ids, trials, offset = {}, {}, 0
  local low, high = whole(queue * PER_GROUP), whole(queue * PER_GROUP + PER_GROUP - 1)
  while #ids < limit do
    -- the first read is mostly the last
    local asked = math.max(limit - #ids, offset > 0 and LOOK or 0)
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

-- Trials from the first queue in order that has any for this worker.
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

-- Trials of this group alone, from the first stage that has any, longest budgets first. A refill
-- may mix the budgets of a stage: the rows of an array end one by one anyway, and an empty row
-- costs more.
local function more_of(limit)
  for stage = 0, math.min(tonumber(redis.call('HGET', GROUPS, '#') or 0) or 0, MOST_STAGES) - 1 do
    local names, all, trials = {}, {}, {}
    for level = TOP_LEVEL, 0, -1 do names[#names + 1] = field_of(stage, level, group) end
    for _, stored in ipairs(fields(GROUPS, names)) do
      local queue = tonumber(stored)
      if natural(queue, MOST_QUEUES) and queue % PER_STAGE ~= 0 and #all < limit then
        local ids, found = pick(queue, limit - #all)
        for n, id in ipairs(ids) do
          all[#all + 1] = id
          trials[#trials + 1] = found[n]
        end
      end
    end
    if #all > 0 then return all, trials, false end
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
