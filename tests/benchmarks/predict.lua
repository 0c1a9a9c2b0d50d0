-- wrk -s predict.lua URL -- CONTENT_TYPE LOWEST HIGHEST FILE...
-- Sends the files in turn; where LOWEST is not "none", with an alpha drawn anew between the two for each of 500 requests.
local requests, turn = {}, 0

function init(args)
  math.randomseed(1)
  for variant = 1, args[2] == "none" and 1 or 500 do
    local path = wrk.path
    if args[2] ~= "none" then
      path = path .. string.format("?alpha=%.4f", args[2] + (args[3] - args[2]) * math.random())
    end
    for position = 4, #args do
      local file = assert(io.open(args[position], "rb"))
      requests[#requests + 1] = wrk.format("POST", path, {["Content-Type"] = args[1]}, file:read("*a"))
      file:close()
    end
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local wrong = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50": %.6f, "p99": %.6f}\n',
    summary.requests, summary.duration / 1e6, wrong.status, wrong.connect + wrong.read + wrong.write + wrong.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
