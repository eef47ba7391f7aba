// Package natsd runs a nats-server in this process, for machines that have none. The server
// keeps its streams on disk. All users of the machine can receive from it.
package natsd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A Server is a nats-server with JetStream.
type Server struct {
	server *server.Server
	lock   *os.File
}

// Start starts a server that listens on addr, such as "127.0.0.1:4222". Port 0 means any free
// port. The server keeps its streams in the directory store, which only one server at a time
// may use. It syncs messages to the disk before it acknowledges them (fsync), so they survive a
// kill and a power failure.
//
// Anybody who can connect may read and write all streams, so addr should be on loopback.
func Start(store, addr string) (*Server, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("the address to listen on: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("the port to listen on is %q, not a number", portText)
	}
	listen := int(port)
	if port == 0 {
		listen = server.RANDOM_PORT
	}
	lock, err := lockDir(store)
	if err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "ringbuf", Host: host, Port: listen,
		JetStream: true, StoreDir: store, SyncAlways: true,
		NoSigs: true, NoLog: true,
	})
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("nats-server: %w", err)
	}
	failed := make(logger, 1)
	s.SetLoggerV2(failed, false, false, false)
	// Without this check, the server ends the process if it cannot listen.
	if probe, err := net.Listen("tcp", net.JoinHostPort(host, portText)); err != nil {
		lock.Close()
		return nil, fmt.Errorf("nats-server: %w: choose another address", err)
	} else {
		probe.Close()
	}
	s.Start()
	n := &Server{s, lock}
	ready := make(chan bool, 1)
	go func() { ready <- s.ReadyForConnections(time.Minute) }()
	select {
	case ok := <-ready:
		if ok {
			return n, nil
		}
		err = errors.New("it is not ready after a minute")
	case err = <-failed:
	}
	n.Stop()
	return nil, fmt.Errorf("nats-server, with its streams in %s: %w", store, err)
}

// lockDir creates dir if necessary, and reserves it for this process until the file is closed.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if err == syscall.EWOULDBLOCK {
			return nil, fmt.Errorf("%s is used by another process: end that, or choose another directory",
				dir)
		}
		return nil, fmt.Errorf("flock %s: %w", lock.Name(), err)
	}
	return lock, nil
}

// URL returns the URL for clients.
func (s *Server) URL() string { return s.server.ClientURL() }

// Option makes nats.Connect use a connection inside the process.
func (s *Server) Option() nats.Option { return nats.InProcessServer(s.server) }

// Stop stops the server and waits until it is closed.
func (s *Server) Stop() {
	s.server.Shutdown()
	s.server.WaitForShutdown()
	s.lock.Close()
}

// A logger keeps the first fatal error.
type logger chan error

func (l logger) Fatalf(format string, args ...any) {
	select {
	case l <- fmt.Errorf(format, args...):
	default:
	}
}

func (logger) Noticef(string, ...any) {}
func (logger) Warnf(string, ...any)   {}
func (logger) Errorf(string, ...any)  {}
func (logger) Debugf(string, ...any)  {}
func (logger) Tracef(string, ...any)  {}
