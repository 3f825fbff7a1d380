// pingpong.go - twins of cond_pingpong.c and sem_pingpong.c.
//
// A sync.Cond with a turn, and two channels of capacity one in place of the
// semaphores. Reported: ns per round trip.
package main

import "sync"

func init() {
	twins["cond_pingpong"] = condPingpong
	twins["sem_pingpong"] = semPingpong
}

func condPingpong(args []string) {
	var lock sync.Mutex
	changed := sync.NewCond(&lock)
	turn := 0 // guarded by lock; 0: main's, 1: the other's, 2: over
	pass := func(to, mine int) int {
		lock.Lock()
		turn = to
		changed.Signal()
		for turn != mine && turn != 2 {
			changed.Wait()
		}
		now := turn
		lock.Unlock()
		return now
	}
	ponged := make(chan int)
	go func() {
		lock.Lock()
		for turn != 1 {
			changed.Wait()
		}
		lock.Unlock()
		n := 1
		for pass(0, 1) == 1 {
			n++
		}
		ponged <- n
	}()
	trips := func() {
		for i := 0; i < 64; i++ {
			pass(1, 0)
		}
	}
	trips()
	ns, ops := repeat(millis(args, 0, 500), 64, trips)
	lock.Lock()
	turn = 2
	changed.Signal()
	lock.Unlock()
	check(<-ponged == ops+64, "every trip was answered")
	report("cond_pingpong", ns, "ns")
}

func semPingpong(args []string) {
	ping, pong := make(chan struct{}, 1), make(chan struct{}, 1)
	ponged := make(chan int)
	go func() {
		n := 0
		for range ping {
			n++
			pong <- struct{}{}
		}
		ponged <- n
	}()
	trips := func() {
		for i := 0; i < 64; i++ {
			ping <- struct{}{}
			<-pong
		}
	}
	trips()
	ns, ops := repeat(millis(args, 0, 500), 64, trips)
	close(ping)
	check(<-ponged == ops+64, "every trip was answered")
	report("sem_pingpong", ns, "ns")
}
