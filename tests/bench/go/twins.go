// twins.go - the Go twins of the benchmarks in tests/bench: one binary, one question per file.
//
// Invariant: a twin does what the C program of the same name does, with the
// same threads, shared state and arguments, in goroutines and the types of package sync,
// and prints the same lines `name value unit`.
// Callers: scripts/bench runs `twins NAME [args]`. Each file registers itself.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

var twins = map[string]func(args []string){}

func main() {
	if len(os.Args) < 2 || twins[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: twins NAME [args]")
		os.Exit(2)
	}
	twins[os.Args[1]](os.Args[2:])
}

// argOr is args[i] as a number, or the default if it was not given.
func argOr(args []string, i int, fallback int) int {
	if i >= len(args) {
		return fallback
	}
	n, err := strconv.Atoi(args[i])
	check(err == nil, "a number as argument")
	return n
}

func millis(args []string, i int, fallback int) time.Duration {
	return time.Duration(argOr(args, i, fallback)) * time.Millisecond
}

func report(name string, value float64, unit string) {
	fmt.Printf("%s %.3f %s\n", name, value, unit)
}

func check(ok bool, what string) {
	if !ok {
		fmt.Fprintln(os.Stderr, "twins: check failed:", what)
		os.Exit(1)
	}
}

// repeat runs step (which does `each` operations) until span has passed; ns per operation.
func repeat(span time.Duration, each int, step func()) (nsPerOp float64, ops int) {
	start := time.Now()
	for {
		step()
		ops += each
		if elapsed := time.Since(start); elapsed >= span {
			return float64(elapsed.Nanoseconds()) / float64(ops), ops
		}
	}
}
