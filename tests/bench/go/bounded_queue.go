// bounded_queue.go - twin of bounded_queue.c, with a mutex and two conds, and as a channel.
//
// Same counts and capacity. The channel form is what a Go programmer would write;
// it is reported under the same name, and scripts/bench keeps the two apart.
package main

import (
	"sync"
	"time"
)

func init() {
	twins["bounded_queue"] = func(args []string) { queueBench(args, newCondQueue) }
	twins["bounded_queue_chan"] = func(args []string) { queueBench(args, newChanQueue) }
}

type queue interface {
	put(item int64)
	get() (item int64, ok bool)
	close()
}

type condQueue struct {
	lock              sync.Mutex
	notEmpty, notFull *sync.Cond
	ring              []int64 // this and the rest guarded by lock
	head, tail        int
	closed            bool
}

func newCondQueue(capacity int) queue {
	q := &condQueue{ring: make([]int64, capacity)}
	q.notEmpty, q.notFull = sync.NewCond(&q.lock), sync.NewCond(&q.lock)
	return q
}

func (q *condQueue) put(item int64) {
	q.lock.Lock()
	for q.tail-q.head == len(q.ring) {
		q.notFull.Wait()
	}
	q.ring[q.tail%len(q.ring)] = item
	q.tail++
	q.notEmpty.Signal()
	q.lock.Unlock()
}

func (q *condQueue) get() (int64, bool) {
	q.lock.Lock()
	defer q.lock.Unlock()
	for q.tail == q.head && !q.closed {
		q.notEmpty.Wait()
	}
	if q.tail == q.head {
		return 0, false
	}
	item := q.ring[q.head%len(q.ring)]
	q.head++
	q.notFull.Signal()
	return item, true
}

func (q *condQueue) close() {
	q.lock.Lock()
	q.closed = true
	q.notEmpty.Broadcast()
	q.lock.Unlock()
}

type chanQueue chan int64

func newChanQueue(capacity int) queue  { return make(chanQueue, capacity) }
func (q chanQueue) put(item int64)     { q <- item }
func (q chanQueue) get() (int64, bool) { item, ok := <-q; return item, ok }
func (q chanQueue) close()             { close(q) }

func queueBench(args []string, make func(capacity int) queue) {
	span := millis(args, 0, 500)
	producers, consumers, q := argOr(args, 1, 8), argOr(args, 2, 8), make(argOr(args, 3, 128))
	type tally struct{ items, sum int64 }
	var lock sync.Mutex
	var putAll, gotAll tally // guarded by lock
	var producing, consuming sync.WaitGroup
	producing.Add(producers)
	consuming.Add(consumers)
	start := time.Now()
	for i := 0; i < producers; i++ {
		go func() {
			defer producing.Done()
			var mine tally
			for time.Since(start) < span {
				for i := 0; i < 64; i++ {
					mine.items++
					q.put(mine.items)
					mine.sum += mine.items
				}
			}
			lock.Lock()
			putAll.items += mine.items
			putAll.sum += mine.sum
			lock.Unlock()
		}()
	}
	for i := 0; i < consumers; i++ {
		go func() {
			defer consuming.Done()
			var mine tally
			for {
				item, ok := q.get()
				if !ok {
					break
				}
				mine.items++
				mine.sum += item
			}
			lock.Lock()
			gotAll.items += mine.items
			gotAll.sum += mine.sum
			lock.Unlock()
		}()
	}
	producing.Wait()
	q.close()
	consuming.Wait()
	elapsed := float64(time.Since(start).Nanoseconds())
	check(putAll == gotAll, "what went in came out")
	report("bounded_queue", float64(gotAll.items)*1e3/elapsed, "M/s")
}
