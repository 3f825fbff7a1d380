// fd_pingpong.go - twin of fd_pingpong.c: one byte there and back over pipes or a socketpair.
//
// Both kinds go through os.File, that is, through Go's own netpoller.
package main

import (
	"os"
	"syscall"
)

func init() { twins["fd_pingpong"] = fdPingpong }

func socketpair() (a, b *os.File) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
	check(err == nil, "socketpair")
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}

func pipes() (myIn, myOut, theirIn, theirOut *os.File) {
	myIn, theirOut, err := os.Pipe()
	check(err == nil, "pipe")
	theirIn, myOut, err = os.Pipe()
	check(err == nil, "pipe")
	return
}

func fdPingpong(args []string) {
	name := "pipe_pingpong"
	var myIn, myOut, theirIn, theirOut *os.File
	if len(args) > 0 && args[0] == "socketpair" {
		name = "socketpair_pingpong"
		myIn, theirIn = socketpair()
		myOut, theirOut = myIn, theirIn
	} else {
		myIn, myOut, theirIn, theirOut = pipes()
	}
	echoed := make(chan int)
	go func() {
		n, buf := 0, make([]byte, 1)
		for {
			got, err := theirIn.Read(buf)
			if got != 1 || err != nil || buf[0] == 'q' {
				break
			}
			_, err = theirOut.Write(buf)
			check(err == nil, "write back")
			n++
		}
		echoed <- n
	}()
	out, in, n := make([]byte, 1), make([]byte, 1), 0
	trips := func() {
		for i := 0; i < 64; i++ {
			out[0] = byte('a' + n%8)
			_, err := myOut.Write(out)
			check(err == nil, "write")
			got, _ := myIn.Read(in)
			check(got == 1 && in[0] == out[0], "the byte came back")
			n++
		}
	}
	trips()
	ns, _ := repeat(millis(args, 1, 500), 64, trips)
	_, err := myOut.Write([]byte{'q'})
	check(err == nil, "write")
	check(<-echoed == n, "every byte was echoed")
	report(name, ns, "ns")
}
