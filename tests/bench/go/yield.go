// yield.go - twin of yield.c: runtime.Gosched between two goroutines.
//
// The figure is defined as there: elapsed * min(cores, 2) / yields.
package main

import (
	"runtime"
	"time"
)

func init() { twins["yield"] = yield }

func yield(args []string) {
	span, cores := millis(args, 0, 500), argOr(args, 1, 1)
	start := time.Now()
	yielder := func(count chan<- int) {
		n := 0
		for {
			for i := 0; i < 256; i++ {
				runtime.Gosched()
			}
			n += 256
			if time.Since(start) >= span {
				break
			}
		}
		count <- n
	}
	count := make(chan int, 2)
	go yielder(count)
	yielder(count)
	total := <-count + <-count
	width := 1.0
	if cores > 1 {
		width = 2
	}
	report("yield", float64(time.Since(start).Nanoseconds())*width/float64(total), "ns")
}
