-- The keys of a search, and functions that the transitions share. This text precedes every script
-- that changes trials.
-- A change that an older program would misread raises PROTOCOL in common/search/protocol.py.
-- A batch comes as one JSON array of rows, and a long answer goes as one JSON array: a client takes
-- longer over a hundred small arguments than over one large one. Configurations and results are
-- strings in it, which no script parses.
--
-- KEYS, the same sixteen for every script, all with the hash tag of the search:
--   1 trials    HASH  trial id -> its configuration, JSON that no script parses
--   2 states    HASH  trial id -> its state, a JSON object (below)
--   3 pending   ZSET  trial id, by queue * 2^20 + index: the trials of one queue are adjacent
--   4 open      ZSET  queue that is not empty, by order: first published stage, longest budget
--                     first, suspects last, most pending first
--   5 groups    HASH  "<stage name>" -> stage number
--                     "<stage number>:<group>" -> queue of its trials that were never promoted
--                     "<stage number>+<level>:<group>" -> queue of its promoted trials
--                     "<stage number>#" -> number of groups so far
--   6 counts    HASH  "<stage number>:<state>" -> number of trials
--   7 leases    ZSET  trial id under lease, by deadline (ms, server clock)
--   8 progress  HASH  trial id under lease -> "<beat> <ms when it last grew> <JSON of the
--                     heartbeat>"; see epoch_of
--   9 results   HASH  trial id that ended -> "<attempt> <JSON of the result>", which no script
--                     parses either
--  10 endings   LIST  "<attempt> <stage number> <trial id>" of every ending, oldest first; its
--                     position is its sequence number
--  11 workers   ZSET  worker, by the time of its last claim or renewal (ms)
--  12 requests  HASH  worker -> its last claim {request, token, alone, ids}, to repeat the answer
--  13 meta      HASH  "tick" -> ms of the last tick, "master" -> ms of the master's last tick
--  14 curves    HASH  trial id under lease -> its thinned curves so far, JSON that no script
--                     parses; removed with the lease
--  15 machines  HASH  worker -> its machine, as its first claim named it
--  16 doubts    HASH  machine whose trials raised and went to another -> the doubts about it, JSON
--                     (see doubt)
--
-- A queue is stage number * 2^23 + level * 2^20 + group number. The level is how often its trials
-- were promoted, at most 7. The trials of a queue share a group and a budget, so that an array
-- trains one kind. Group 0 of level 0 has the stage's suspects, whatever their budget.
--
-- The fields of a state (absent if not set):
--   s  state
--   g  queue of its group
--   i  index
--   a  highest attempt number used
--   t  token of the last lease
--   w  worker of the last lease
--   c  ms of the claim
--   o  true while claimed alone
--   x  true if suspect
--   l  losses while alone ("try 2 on worker") since it last got further
--   e  the epoch that it had reached by then
--   y  why the last fence is void
--   f  attempts up to this one are settled (retried, promoted)
--   b  tries that raised: [machine, attempt, worker, reason] each
--   r  rung: how often it was promoted
--   p  fences whose finish was accepted before a promotion: [attempt, token] each

local TRIALS, STATES, PENDING, OPEN, GROUPS, COUNTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local LEASES, PROGRESS, RESULTS, ENDINGS, WORKERS, REQUESTS, META = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local CURVES, MACHINES, DOUBTS = KEYS[14], KEYS[15], KEYS[16]

local PER_GROUP = 1048576 -- 2^20 trials per group
local PER_LEVEL = 1048576 -- 2^20 groups per level
local TOP_LEVEL = 7
local PER_STAGE = (TOP_LEVEL + 1) * PER_LEVEL -- with 2^10 stages a double holds every score
local FORGET_MS = 86400000 -- a day: longer than any outage that a worker waits out
-- trials that raise on a machine and not elsewhere: one may be chance, three are the machine's
-- fault
local STRIKES = 3
local SLICE = 2000 -- arguments per call; unpack fails above about 8,000
local MOST_STAGES = 1024
local MOST_QUEUES = MOST_STAGES * PER_STAGE
local MOST_ATTEMPTS = 1000000000 -- nine digits, as in the names of records
local MOST_RUNGS = 1024 -- far more rungs than any search has
-- above any attempt of a search, for a trial whose attempt nobody knows any more
local UNKNOWN_ATTEMPT = 1048576
local LATEST = 2 ^ 53
local PLACES = { pending = true, running = true, completed = true, exploded = true, stopped = true, killed = true, failed = true }

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Runs one command with many arguments, in slices. Each has an even number, so that pairs stay
-- together.
local function in_slices(command, key, arguments)
  for first = 1, #arguments, SLICE do
    redis.call(command, key, unpack(arguments, first, math.min(first + SLICE - 1, #arguments)))
  end
end

-- The values of fields of a hash; false for a field that does not exist.
local function fields(key, names)
  local values = {}
  for first = 1, #names, SLICE do
    for _, value in ipairs(redis.call('HMGET', key, unpack(names, first, math.min(first + SLICE - 1, #names)))) do
      values[#values + 1] = value
    end
  end
  return values
end

local function column(rows, number)
  local values = {}
  for n, row in ipairs(rows) do values[n] = row[number] end
  return values
end

local function whole(number)
  return string.format('%.0f', number)
end

local function natural(number, below)
  return type(number) == 'number' and number >= 0 and number < below and number == math.floor(number)
end

-- Whether a value is a list of which `good` holds for every entry.
local function list_of(value, good)
  if type(value) ~= 'table' then return false end
  for key, entry in pairs(value) do
    if not natural(key, #value + 1) or not good(entry) then return false end
  end
  return true
end

local function text(value)
  return type(value) == 'string'
end

local function try_that_raised(try)
  return type(try) == 'table' and text(try[1]) and natural(try[2], MOST_ATTEMPTS) and text(try[3]) and text(try[4])
end

local function accepted_fence(fence)
  return type(fence) == 'table' and natural(fence[1], MOST_ATTEMPTS) and text(fence[2])
end

-- Parses a table out of JSON; nil for anything else.
local function table_in(raw)
  local good, value = pcall(cjson.decode, raw)
  return good and type(value) == 'table' and value or nil
end

-- Parses a state that these scripts wrote. It is nil if there is none, or if another program wrote
-- it: nothing is derived from such a state.
local function state_in(raw)
  local trial = raw and table_in(raw)
  if not trial or not PLACES[trial.s] then return nil end
  if not (natural(trial.g, MOST_QUEUES) and natural(trial.i, PER_GROUP) and natural(trial.a, MOST_ATTEMPTS)) then return nil end
  for _, field in ipairs({ 't', 'w', 'y' }) do
    if trial[field] ~= nil and not text(trial[field]) then return nil end
  end
  if trial.s == 'running' and not (trial.t and trial.w and natural(trial.c, LATEST)) then return nil end
  if (trial.l ~= nil and not list_of(trial.l, text)) or (trial.b ~= nil and not list_of(trial.b, try_that_raised)) then return nil end
  if trial.f ~= nil and not natural(trial.f, MOST_ATTEMPTS) then return nil end
  if trial.e ~= nil and not (type(trial.e) == 'number' and trial.e >= 0 and trial.e < LATEST) then return nil end
  if trial.r ~= nil and not natural(trial.r, MOST_RUNGS) then return nil end
  if trial.p ~= nil and not list_of(trial.p, accepted_fence) then return nil end
  return trial
end

-- Reads the state for a message about this trial. A damaged state is an error, so that it is not
-- taken for an unknown trial.
local function state_of(id)
  local raw = redis.call('HGET', STATES, id)
  local trial = state_in(raw)
  if raw and not trial then error('a damaged state') end
  return trial
end

-- Parses the doubts about a machine (see doubt); nil if another program wrote them.
local function doubt_in(raw)
  local known = table_in(raw)
  if not known or not (natural(known.o, LATEST) and natural(known.f, LATEST) and natural(known.s, LATEST)) then return nil end
  return list_of(known.n, text) and #known.n <= STRIKES and text(known.y) and known or nil
end

-- The machines whose trials raised, read at first need. Most searches have none, and only pay for
-- one HLEN.
local doubted
local function doubts()
  if not doubted then
    doubted = {}
    local stored = redis.call('HLEN', DOUBTS) > 0 and redis.call('HGETALL', DOUBTS) or {}
    for n = 1, #stored, 2 do doubted[stored[n]] = doubt_in(stored[n + 1]) end
  end
  return doubted
end

-- Stores the doubts about a machine:
--   o  trials that raised on it and have not ended yet
--   f  trials in a row that raised on it and went to another machine; a trial that ends well on it,
--      or one that fails on another machine too, ends the row
--   s  strikes: trials that raised on it and ended well on another machine, minus its own successes
--      since
--   n  the last few of these trials
--   y  why the first raised
local function doubt(machine, known)
  if known and (known.o > 0 or known.s > 0) then
    doubts()[machine] = known
    redis.call('HSET', DOUBTS, machine, cjson.encode(known))
    redis.call('PEXPIRE', DOUBTS, FORGET_MS)
  else
    doubts()[machine] = nil
    redis.call('HDEL', DOUBTS, machine)
  end
end

local function put_aside(machine)
  local known = doubts()[machine]
  return known and known.s >= STRIKES or false
end

-- The machines that work for this search and are not put aside, as a set; read once.
local able
local function able_machines(now, live_ms)
  if not able then
    able = {}
    local live = redis.call('ZRANGEBYSCORE', WORKERS, whole(now - live_ms), '+inf')
    for _, machine in ipairs(fields(MACHINES, live)) do
      if machine and not put_aside(machine) then able[machine] = true end
    end
  end
  return able
end

local function raised_on(trial, machine)
  for _, try in ipairs(trial.b or {}) do
    if try[1] == machine then return true end
  end
  return false
end

-- Whether a machine other than `machine` lives that could still try this trial.
local function elsewhere(trial, machine, now, live_ms)
  for other in pairs(able_machines(now, live_ms)) do
    if other ~= machine and not raised_on(trial, other) then return true end
  end
  return false
end

-- Changes of the script, which save() writes once at its end.
local changed, grown, counted = {}, {}, {}
local due, ended, freed, dequeued = {}, {}, {}, {}

local function stage_number(trial)
  return math.floor(trial.g / PER_STAGE)
end

local function count(trial, state, by)
  local field = whole(stage_number(trial)) .. ':' .. state
  counted[field] = (counted[field] or 0) + by
end

local function move(id, trial, state)
  if trial.s then count(trial, trial.s, -1) end
  trial.s = state
  count(trial, state, 1)
  changed[id] = trial
end

local function queue_of(trial)
  return trial.x and stage_number(trial) * PER_STAGE or trial.g
end

-- Puts a trial into its queue, from any state. A lease that it had is void.
local function enqueue(id, trial)
  local queue = queue_of(trial)
  redis.call('ZADD', PENDING, whole(queue * PER_GROUP + trial.i), id)
  grown[queue] = (grown[queue] or 0) + 1
  move(id, trial, 'pending')
end

local function requeue(id, trial)
  freed[#freed + 1] = id
  trial.o = nil
  enqueue(id, trial)
end

-- Removes a trial from its queue. `trial` must be as it was when it was enqueued.
local function dequeue(id, trial)
  local queue = queue_of(trial)
  dequeued[#dequeued + 1] = id
  grown[queue] = (grown[queue] or 0) - 1
end

-- Notes how a trial ended.
local function settle(id, trial, state, attempt, result)
  move(id, trial, state)
  ended[#ended + 1] = id
  ended[#ended + 1] = whole(attempt) .. ' ' .. result
end

-- Does the same, and adds it as the latest of all endings.
local function conclude(id, trial, state, attempt, result)
  trial.a, trial.o = math.max(trial.a, attempt), nil
  settle(id, trial, state, attempt, result)
  redis.call('RPUSH', ENDINGS, whole(attempt) .. ' ' .. whole(stage_number(trial)) .. ' ' .. id)
end

-- Ends a trial, pending or running, with the result of `attempt`.
local function finish(id, trial, state, attempt, result)
  if trial.s == 'pending' then dequeue(id, trial) elseif trial.s then freed[#freed + 1] = id end
  conclude(id, trial, state, attempt, result)
  for _, try in ipairs(trial.b or {}) do
    local known = doubts()[try[1]]
    if known then
      known.o = math.max(0, known.o - 1)
      doubt(try[1], known)
    end
  end
end

-- Ends a trial against its holder: voids the fence and uses the next attempt number. Returns
-- {attempt, state, worker, result}.
local function condemn(id, trial, state, why, reason)
  local result = cjson.encode({ state = state, reason = reason, worker = trial.w, rung = trial.r })
  trial.t, trial.y = nil, why
  finish(id, trial, state, trial.a + 1, result)
  return { trial.a, state, trial.w or '', result }
end

-- The epoch in the last heartbeat: the third of its values (wire.py, PROGRESS_FIELDS).
local function epoch_of(id)
  local stored = fields(PROGRESS, { id })[1]
  local said = stored and table_in(string.match(stored, '^%d+ %d+ (.*)$') or '')
  return said and type(said[3]) == 'number' and said[3] >= 0 and said[3] < LATEST and said[3] or 0
end

-- Sends a lost trial back to its queue as a suspect, or ends it as FAILED at the limit. A loss only
-- counts while the trial was alone, and only if the trial got no further than at the loss before.
-- So a trial that is preempted again and again, and yet advances, does not fail. `how` says in
-- words how its worker ended; it is empty if that is unknown. The fence stays valid for finish: if
-- the holder has finished all the same before another one begins, that counts.
local function lose(id, trial, why, limit, how)
  local reached = epoch_of(id)
  if reached > (trial.e or 0) then trial.l, trial.e = nil, reached end
  if trial.o then
    trial.l = trial.l or {}
    table.insert(trial.l, 'try ' .. whole(trial.a) .. ' on ' .. trial.w)
  end
  trial.x = true
  if trial.o and #trial.l >= limit then
    local reason = 'lost ' .. #trial.l .. ' attempts while alone: ' .. table.concat(trial.l, ', ')
    if (how or '') ~= '' then reason = reason .. '; ' .. how end
    return condemn(id, trial, 'failed', why, reason)
  end
  trial.y = why
  requeue(id, trial)
  return { trial.a, 'pending', trial.w, '' }
end

-- Handles a trial that is in a queue or under lease although its state does not say so, since
-- another program has written to the keys. The trial leaves that place. If no other key knows of
-- it, it has FAILED, or the search would wait for it for ever. Call this before save().
local function bury(id, from, queue)
  if from == 'pending' then
    dequeued[#dequeued + 1] = id
    grown[queue] = (grown[queue] or 0) - 1
  else
    freed[#freed + 1] = id
  end
  local stage = string.match(id, '^(%a[%w_]*)%-%d+$')
  local number, index = tonumber(stage and redis.call('HGET', GROUPS, stage)), tonumber(string.match(id, '%d+$'))
  if not natural(number, MOST_STAGES) or not natural(index, PER_GROUP) or not fields(TRIALS, { id })[1] then return end
  local other = from == 'pending' and redis.call('ZSCORE', LEASES, id) or from == 'running' and redis.call('ZSCORE', PENDING, id)
  if other or redis.call('HGET', RESULTS, id) then return end
  local said = table_in(fields(STATES, { id })[1]) or {}
  local trial = { g = number * PER_STAGE + 1, i = index, a = natural(said.a, UNKNOWN_ATTEMPT) and said.a or UNKNOWN_ATTEMPT, x = true }
  count(trial, from, -1)
  condemn(id, trial, 'failed', 'damaged', 'Redis held a state of it that this program has not written; see who else uses this Redis')
end

local function holds(trial, attempt, token)
  return trial and trial.s == 'running' and trial.a == tonumber(attempt) and trial.t == token
end

-- Whether the trial was taken from this holder, and no other has begun it since.
local function lost_by(trial, attempt, token)
  local lost = trial and trial.s == 'pending' and (trial.y == 'expired' or trial.y == 'stuck')
  return lost and trial.a == tonumber(attempt) and trial.t == token
end

-- The field of `groups` with the queue of a stage's group at one level.
local function field_of(number, level, group)
  return number .. (level > 0 and '+' .. level or '') .. ':' .. group
end

-- The queue for trials of a stage's group at a rung. Stage, group and queue are created at first
-- use.
local function queue_for(stage, group, rung)
  local number = redis.call('HGET', GROUPS, stage)
  if not number then
    number = redis.call('HINCRBY', GROUPS, '#', 1) - 1
    redis.call('HSET', GROUPS, stage, number)
  end
  local level = math.min(rung, TOP_LEVEL)
  local field = field_of(number, level, group)
  local queue = redis.call('HGET', GROUPS, field)
  if not queue then
    local fresh = redis.call('HINCRBY', GROUPS, number .. '#', 1)
    queue = tonumber(number) * PER_STAGE + level * PER_LEVEL + fresh
    redis.call('HSET', GROUPS, field, whole(queue))
  end
  return tonumber(queue)
end

-- The rank of a queue among the open ones: earlier stage first, then longer budget, suspects last,
-- then most pending. The longest trainings begin first, so that the workers end at about the same
-- time.
local function order(queue)
  local stage, within = math.floor(queue / PER_STAGE), queue % PER_STAGE
  local place = within == 0 and TOP_LEVEL + 1 or TOP_LEVEL - math.floor(within / PER_LEVEL)
  return (stage * 2 * (TOP_LEVEL + 1) + place) * 2 * PER_GROUP
end

local function resize(queue, by)
  local base, member = order(queue), whole(queue)
  local score = redis.call('ZSCORE', OPEN, member)
  local size = (score and base - tonumber(score) or 0) + by
  if size > 0 then redis.call('ZADD', OPEN, whole(base - size), member) else redis.call('ZREM', OPEN, member) end
end

local function save()
  local pairs_of_states = {}
  for id, trial in pairs(changed) do
    pairs_of_states[#pairs_of_states + 1] = id
    pairs_of_states[#pairs_of_states + 1] = cjson.encode(trial)
  end
  in_slices('HSET', STATES, pairs_of_states)
  in_slices('ZREM', PENDING, dequeued)
  in_slices('ZREM', LEASES, freed)
  in_slices('HDEL', PROGRESS, freed)
  in_slices('HDEL', CURVES, freed)
  in_slices('HSET', RESULTS, ended)
  in_slices('ZADD', LEASES, due)
  for queue, by in pairs(grown) do if by ~= 0 then resize(queue, by) end end
  for field, by in pairs(counted) do if by ~= 0 then redis.call('HINCRBY', COUNTS, field, by) end end
end

-- Keeps the data about workers for one more day, so that a search that was dropped leaves nothing.
local function remember()
  redis.call('PEXPIRE', WORKERS, FORGET_MS)
  redis.call('PEXPIRE', REQUESTS, FORGET_MS)
  redis.call('PEXPIRE', MACHINES, FORGET_MS)
end

local function seen(worker, now)
  if redis.call('ZADD', WORKERS, whole(now), worker) == 0 then return end
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', whole(now - FORGET_MS), 'LIMIT', 0, 100)) do
    redis.call('ZREM', WORKERS, old)
    redis.call('HDEL', REQUESTS, old)
    redis.call('HDEL', MACHINES, old)
  end
  remember()
end
