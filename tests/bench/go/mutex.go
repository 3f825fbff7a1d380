// mutex.go - twins of mutex_uncontended.c and mutex_contended.c, with sync.Mutex.
//
// The threads start together, look at the clock each 64 rounds, and leave at the deadline.
package main

import (
	"fmt"
	"sync"
	"time"
)

func init() {
	twins["mutex_uncontended"] = mutexUncontended
	twins["mutex_contended"] = mutexContended
}

// Both guarded by the mutex of the twin that runs.
var counter int64
var mix uint64 = 1

func mutexUncontended(args []string) {
	var lock sync.Mutex
	finish, gone := make(chan struct{}), make(chan struct{})
	go func() { <-finish; close(gone) }()
	ns, _ := repeat(millis(args, 0, 500), 4096, func() {
		for i := 0; i < 4096; i++ {
			lock.Lock()
			counter++
			lock.Unlock()
		}
	})
	close(finish)
	<-gone
	report("mutex_uncontended", ns, "ns")
}

func stirred(x uint64, times int) uint64 {
	for ; times > 0; times-- {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

func mutexContended(args []string) {
	threads, span := argOr(args, 0, 8), millis(args, 1, 500)
	var lock sync.Mutex
	var deadline time.Time
	ready := make(chan struct{})
	rounds := make(chan int64, threads)
	for i := 0; i < threads; i++ {
		go func() {
			n, own := int64(0), uint64(1)
			<-ready
			for {
				for i := 0; i < 64; i++ {
					lock.Lock()
					counter++
					mix = stirred(mix, 8)
					lock.Unlock()
					own = stirred(own, 24)
				}
				n += 64
				if !time.Now().Before(deadline) {
					break
				}
			}
			check(own != 0, "the outside work is alive")
			rounds <- n
		}()
	}
	start := time.Now()
	deadline = start.Add(span)
	close(ready)
	sum := int64(0)
	for i := 0; i < threads; i++ {
		sum += <-rounds
	}
	elapsed := float64(time.Since(start).Nanoseconds())
	check(sum == counter, "no round was lost")
	report(fmt.Sprintf("mutex_%d", threads), float64(sum)*1e3/elapsed, "M/s")
}
