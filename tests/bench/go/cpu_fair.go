// cpu_fair.go - twin of cpu_fair.c: a 1 ms sleeper beside 8 spinning goroutines.
//
// The spinners make no call; Go preempts them by signal.
package main

import (
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

func init() { twins["cpu_fair"] = cpuFair }

func cpuFair(args []string) {
	span, spinners := millis(args, 0, 2000), argOr(args, 1, 8)
	progress := make([]struct {
		count int64
		_     [120]byte
	}, spinners)
	var stop atomic.Bool
	var gone sync.WaitGroup
	gone.Add(spinners)
	for i := range progress {
		go func(mine *int64) {
			for n := int64(1); !stop.Load(); n++ {
				atomic.StoreInt64(mine, n)
			}
			gone.Done()
		}(&progress[i].count)
	}
	var oversleep []float64
	for start := time.Now(); time.Since(start) < span; {
		before := time.Now()
		time.Sleep(time.Millisecond)
		oversleep = append(oversleep, float64((time.Since(before)-time.Millisecond).Nanoseconds())/1e3)
	}
	least, most, sum := int64(1)<<62, int64(0), 0.0
	for i := range progress {
		n := atomic.LoadInt64(&progress[i].count)
		if n < least {
			least = n
		}
		if n > most {
			most = n
		}
		sum += float64(n)
	}
	stop.Store(true)
	gone.Wait()
	sort.Float64s(oversleep)
	report("cpu_fair_p50", oversleep[len(oversleep)/2], "us")
	report("cpu_fair_p99", oversleep[len(oversleep)*99/100], "us")
	report("cpu_fair_spread", float64(most-least)*100*float64(spinners)/sum, "%")
}
