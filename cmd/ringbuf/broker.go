package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

// The defaults of ship and subscribe agree, so that subscribe finds the server of ship.
const (
	defaultStream = "RINGBUF"
	defaultListen = "127.0.0.1:4222"
)

// A broker has the flags that describe a nats-server. ship and subscribe share them.
type broker struct {
	stream                        string
	creds, tlsCA, tlsCert, tlsKey string
}

func (b *broker) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&b.stream, "stream", defaultStream, "`name` of the stream")
	flags.StringVar(&b.creds, "creds", "", "credentials: a `file` of JWT and key, as nsc makes them")
	flags.StringVar(&b.tlsCA, "tlsca", "", "`file` of certificates of authorities to trust (PEM)")
	flags.StringVar(&b.tlsCert, "tlscert", "", "`file` of the certificate to show to the server (PEM)")
	flags.StringVar(&b.tlsKey, "tlskey", "", "`file` of its key (PEM)")
}

// check returns a usageError if a flag is wrong or lacks its counterpart.
func (b *broker) check() error {
	switch {
	case b.stream == "":
		return usageErrorf("--stream: a stream has a name")
	case strings.ContainsAny(b.stream, " \t\r\n.*>/\\"):
		return usageErrorf("--stream %q: the name of a stream has no spaces and none of . * > / \\",
			b.stream)
	case (b.tlsCert == "") != (b.tlsKey == ""):
		return usageErrorf("--tlscert and --tlskey belong together: give both, or none")
	}
	return nil
}

// authenticates reports whether the flags name credentials or certificates.
func (b *broker) authenticates() bool {
	return b.creds != "" || b.tlsCA != "" || b.tlsCert != ""
}

// withoutSecrets removes users, passwords and tokens from URLs, which are separated by commas. The
// result may be shown. It returns a usageError if one of them is not the URL of a server.
func withoutSecrets(to string) (string, error) {
	var shown []string
	for i, part := range strings.Split(to, ",") {
		if part = strings.TrimSpace(part); i > 0 && !strings.Contains(part, "://") {
			part = "nats://" + part
		}
		u, err := url.Parse(part)
		if err != nil || u.Host == "" ||
			!slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return "", usageErrorf("%q is no URL of a server, such as nats://host:4222 or tls://host:4222",
				part)
		}
		u.User = nil
		shown = append(shown, u.String())
	}
	return strings.Join(shown, ","), nil
}

// connect connects to a server, and reconnects whenever the connection is lost. It returns at once,
// even if the server is away. shown names the server without secrets. While there is no connection,
// connect says why.
func (b *broker) connect(to string, say func(format string, args ...any),
	more ...nats.Option) (nc *nats.Conn, shown string, err error) {
	if shown, err = withoutSecrets(to); err != nil {
		return nil, "", err
	}
	options := append([]nats.Option{
		nats.Name("ringbuf"),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
	}, more...)
	// The reasons that were told since the last connection. Handlers are called one at a time.
	told := map[string]bool{}
	forget := func(*nats.Conn) { clear(told) }
	options = append(options, nats.ConnectHandler(forget), nats.ReconnectHandler(forget),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if why := reason(err); !told[why] {
				told[why] = true
				say("no connection to %s: %s", shown, why)
			}
		}))
	if b.creds != "" {
		options = append(options, nats.UserCredentials(b.creds))
	}
	if b.tlsCA != "" {
		options = append(options, nats.RootCAs(b.tlsCA))
	}
	if b.tlsCert != "" {
		options = append(options, nats.ClientCert(b.tlsCert, b.tlsKey))
	}
	if nc, err = nats.Connect(to, options...); err != nil {
		return nil, "", fmt.Errorf("connect to %s: %w", shown, err)
	}
	return nc, shown, nil
}

// reason returns the message of a network error without its addresses, because the local port
// changes with each attempt.
func reason(err error) string {
	for op := new(net.OpError); errors.As(err, &op); {
		err = op.Err
	}
	return oneLine(err)
}
