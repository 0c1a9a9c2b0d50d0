-- wrk -s predict.lua URL -- CONTENT_TYPE LOWEST HIGHEST UNTIL FILE...
-- Sends the files in turn; where LOWEST is not "none", with an alpha drawn anew between the two for each of 500 requests.
-- The time counts until the end, or, where UNTIL is "answer", from the first request to the last answer.
local requests, turn = {}, 0
local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

local function watch()
  local ffi = require("ffi")
  ffi.cdef("typedef struct { long seconds; int micros; } moment; int gettimeofday(moment *now, void *zone);")
  local now = ffi.new("moment")
  local function seconds()
    ffi.C.gettimeofday(now, nil)
    return tonumber(now.seconds) + now.micros / 1e6
  end
  begin = seconds()  -- globals, which `done` can ask the thread for
  function response()
    last = seconds()
  end
end

function init(args)
  math.randomseed(1)
  for variant = 1, args[2] == "none" and 1 or 500 do
    local path = wrk.path
    if args[2] ~= "none" then
      path = path .. string.format("?alpha=%.4f", args[2] + (args[3] - args[2]) * math.random())
    end
    for position = 5, #args do
      local file = assert(io.open(args[position], "rb"))
      requests[#requests + 1] = wrk.format("POST", path, {["Content-Type"] = args[1]}, file:read("*a"))
      file:close()
    end
  end
  if args[4] == "answer" then
    watch()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local wrong, seconds = summary.errors, summary.duration / 1e6
  local last = threads[1]:get("last")  -- there is one thread
  if last then
    seconds = last - threads[1]:get("begin")
  end
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50": %.6f, "p99": %.6f}\n',
    summary.requests, seconds, wrong.status, wrong.connect + wrong.read + wrong.write + wrong.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
