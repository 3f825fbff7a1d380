-- body.lua - for wrk: every response must have status 200 and the bytes of the file $EXPECT.
local file = assert(io.open(os.getenv("EXPECT"), "rb"))
local expected = file:read("*a")
file:close()

-- Globals: wrk keeps one state per thread, and done() asks each for them.
right, wrong = 0, 0
local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

function response(status, _, body)
  if status == 200 and body == expected then right = right + 1 else wrong = wrong + 1 end
end

function done()
  local all_right, all_wrong = 0, 0
  for _, thread in ipairs(threads) do
    all_right = all_right + thread:get("right")
    all_wrong = all_wrong + thread:get("wrong")
  end
  print(string.format("bodies wrong %d, right %d", all_wrong, all_right))
end
