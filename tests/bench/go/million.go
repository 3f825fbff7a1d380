// million.go - twin of million.c: N goroutines blocked on a sync.Cond, woken and awaited.
//
// The stack size argument is accepted and ignored: a goroutine's stack grows.
package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

func init() { twins["million"] = million }

// statusKiB is a field of /proc/self/status.
func statusKiB(field string) float64 {
	f, err := os.Open("/proc/self/status")
	check(err == nil, "open /proc/self/status")
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) > 1 && words[0] == field {
			kib, _ := strconv.ParseFloat(words[1], 64)
			return kib
		}
	}
	return 0
}

func million(args []string) {
	n, base := argOr(args, 0, 10000), "blocked"
	if len(args) > 2 {
		base = args[2]
	}
	var lock sync.Mutex
	goOn, counted := sync.NewCond(&lock), sync.NewCond(&lock)
	blocked, released := 0, false // guarded by lock
	var joined sync.WaitGroup
	rss, pte := statusKiB("VmRSS:"), statusKiB("VmPTE:")

	start := time.Now()
	joined.Add(n)
	for i := 0; i < n; i++ {
		go func() {
			lock.Lock()
			if blocked++; blocked == n {
				counted.Signal()
			}
			for !released {
				goOn.Wait()
			}
			lock.Unlock()
			joined.Done()
		}()
	}
	lock.Lock()
	for blocked != n {
		counted.Wait()
	}
	lock.Unlock()
	paused := time.Now()
	rss, pte = statusKiB("VmRSS:")-rss, statusKiB("VmPTE:")-pte
	pause := time.Since(paused)

	lock.Lock()
	released = true
	goOn.Broadcast()
	lock.Unlock()
	joined.Wait()
	ns := float64((time.Since(start) - pause).Nanoseconds())
	report(base+"_alive", float64(n), "threads")
	report(base+"_each", ns/1e3/float64(n), "us/thread")
	report(base+"_all", ns/1e9, "s")
	report(base+"_rss", rss/float64(n), "KiB/thread")
	report(base+"_pte", pte/float64(n), "KiB/thread")
}
