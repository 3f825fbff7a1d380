// create.go - twins of create_join.c, create_detached.c and forkjoin.c.
//
// A goroutine and a WaitGroup for each thread and its join; for the detached ones
// a count and a channel; for the recursion a WaitGroup in the caller's frame.
package main

import (
	"sync"
	"sync/atomic"
)

func init() {
	twins["create_join"] = createJoin
	twins["create_detached"] = createDetached
	twins["forkjoin"] = forkjoin
}

func createJoin(args []string) {
	sum, made := 0, 0
	ns, ops := repeat(millis(args, 0, 500), 32, func() {
		for i := 0; i < 32; i++ {
			var wg sync.WaitGroup
			wg.Add(1)
			made++
			value := 0
			go func(arg int) {
				value = arg
				wg.Done()
			}(made)
			wg.Wait()
			sum += value
		}
	})
	check(sum == ops*(ops+1)/2, "every value came back")
	report("create_join", ns, "ns")
}

func createDetached(args []string) {
	batch := argOr(args, 1, 1000)
	done := make(chan struct{}, 1)
	var left atomic.Int64
	ns, _ := repeat(millis(args, 0, 500), batch, func() {
		left.Store(int64(batch))
		for i := 0; i < batch; i++ {
			go func() {
				if left.Add(-1) == 0 {
					done <- struct{}{}
				}
			}()
		}
		<-done
	})
	report("create_detached", ns, "ns")
}

func fib(n int) int {
	if n < 2 {
		return n
	}
	var wg sync.WaitGroup
	wg.Add(1)
	child := 0
	go func() {
		child = fib(n - 1)
		wg.Done()
	}()
	own := fib(n - 2)
	wg.Wait()
	return own + child
}

func forkjoin(args []string) {
	n := argOr(args, 0, 21)
	a, b := 0, 1
	for i := 0; i < n; i++ {
		a, b = b, a+b
	}
	ns, _ := repeat(millis(args, 1, 500), 1, func() { check(fib(n) == a, "the sum") })
	report("forkjoin", ns/1e6, "ms")
}
