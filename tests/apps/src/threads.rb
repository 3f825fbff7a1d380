# threads.rb - Ruby's threads: queues, condition variables, timeouts (they interrupt by signal),
# kill, child processes, fork, sockets. Prints `right`; a wrong answer raises.
require 'digest'
require 'open3'
require 'socket'
require 'timeout'

def expect(what, got, wanted)
  raise "#{what}: #{got.inspect} instead of #{wanted.inspect}" unless got == wanted
end

tasks, results = Queue.new, Queue.new
workers = 8.times.map { Thread.new { while (i = tasks.pop) do results << [i, Digest::SHA256.hexdigest(i.to_s * 500)] end } }
1500.times { |i| tasks << i }
tasks.close
workers.each(&:join)
digests = 1500.times.map { results.pop }.sort
expect('digests', digests, (0...1500).map { |i| [i, Digest::SHA256.hexdigest(i.to_s * 500)] })

mutex, changed, turn, order = Mutex.new, ConditionVariable.new, 0, []
4.times.map do |i|
  Thread.new do
    500.times do
      mutex.synchronize do
        changed.wait(mutex) while turn != i
        order << i
        turn = (turn + 1) % 4
        changed.broadcast
      end
    end
  end
end.each(&:join)
expect('turns', order, [0, 1, 2, 3] * 500)

count = 0
8.times.map { Thread.new { 10_000.times { mutex.synchronize { count += 1 } } } }.each(&:join)
expect('count', count, 80_000)

[-> { sleep 100 }, -> { loop {} }, -> { Queue.new.pop }].each do |endless|
  stopped = begin
    Timeout.timeout(0.1) { endless.call }
  rescue Timeout::Error
    true
  end
  expect('timeout', stopped, true)
end
sleeper = Thread.new { sleep }
Thread.pass until sleeper.stop?
sleeper.kill
sleeper.join
expect('killed', sleeper.alive?, false)

outputs = 20.times.map { |i| Thread.new { Open3.capture2('/bin/cat', stdin_data: i.to_s)[0].to_i } }.map(&:value)
expect('children', outputs, (0...20).to_a)

pairs = 20.times.map { UNIXSocket.pair }
echoes = pairs.map { |_, theirs| Thread.new { while (line = theirs.gets) do theirs.write line end } }
50.times do |k|
  pairs.each_with_index do |(ours, _), i|
    ours.write "#{k} #{i}\n"
    expect('echo', ours.gets, "#{k} #{i}\n")
  end
end
pairs.each { |ours, _| ours.close }
echoes.each(&:join)

expect('values', 400.times.map { |i| Thread.new { Thread.pass; i } }.map(&:value), (0...400).to_a)
fiber = Fiber.new { |x| loop { x = Fiber.yield(x * 2) } }
expect('fiber', 500.times.map { |i| fiber.resume(i) }, 500.times.map { |i| i * 2 })
8.times { GC.start }
pid = fork { exit!(Thread.new { 3 }.value) }
Process.wait(pid)
expect('forked', $?.exitstatus, 3)
puts 'right'
