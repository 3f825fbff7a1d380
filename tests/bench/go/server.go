// server.go - twins of echo_server.c and request_server.c: package net, a goroutine per
// connection, or per request.
//
// Prints `port N`, then serves until it is killed. The load is load_client.c's.
package main

import (
	"fmt"
	"io"
	"net"
)

const messageBytes = 64

func init() {
	twins["echo_server"] = func([]string) { serveAll(echo) }
	twins["request_server"] = func([]string) { serveAll(readRequests) }
}

func serveAll(serve func(net.Conn)) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	check(err == nil, "listen")
	fmt.Printf("port %d\n", listener.Addr().(*net.TCPAddr).Port)
	for {
		conn, err := listener.Accept()
		check(err == nil, "accept")
		go serve(conn)
	}
}

func echo(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, messageBytes)
	for {
		if _, err := io.ReadFull(conn, buf); err != nil {
			return
		}
		if _, err := conn.Write(buf); err != nil {
			return
		}
	}
}

func readRequests(conn net.Conn) {
	defer conn.Close()
	for {
		body := make([]byte, messageBytes)
		if _, err := io.ReadFull(conn, body); err != nil {
			return
		}
		go conn.Write(body)
	}
}
