// Publishes one broadcast job, the way any Go service can. Copy this file; it needs the module
// github.com/rabbitmq/amqp091-go (1.5 or newer) and nothing of Fanwise.
//
//	go run producer.go --client-msg-no promo-7 --text Hello --count 1000
//	go run producer.go --client-msg-no promo-8 --text Hello --file users.txt
//
// What makes a job safe to publish:
//
//   - client_msg_no is the key of the job. Publish again with the same key and message, after a
//     crash or when in doubt, and nobody gets it twice. Take it from your own data, never a new
//     random one for each try.
//   - The message is persistent and mandatory, on a channel with publisher confirms. A message that
//     no queue took is returned AND confirmed. The return arrives first, so it is known by the time
//     of the confirm. Only a confirm without a return means "accepted".
//   - A list longer than 100,000 recipients or 4 MiB travels as parts of one job.
//
// Exit code 0: the broker has the whole job on disk. Anything else: not known to be accepted; run it
// again.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	partRecipientsMax = 100_000
	partBytesMax      = 4 * 1024 * 1024
	// Longest wait for the broker: to connect, and to confirm one message.
	patience = 30 * time.Second
)

type job struct {
	V           int      `json:"v"`
	ClientMsgNo string   `json:"client_msg_no"`
	Target      string   `json:"target,omitempty"`
	Message     message  `json:"message"`
	Audience    audience `json:"audience"`
	Part        *part    `json:"part,omitempty"`
}

type message struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type audience struct {
	Users []string `json:"users"`
}

type part struct {
	Number int `json:"number"`
	Of     int `json:"of"`
}

type arguments struct {
	url, exchange, routingKey, clientMsgNo, text, target, file, traceparent string
	count                                                                   int
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "not known to be accepted:", err)
		os.Exit(1)
	}
}

func run() error {
	args, err := readArguments()
	if err != nil {
		return err
	}
	recipients, err := readRecipients(args)
	if err != nil {
		return err
	}
	parts, err := bodies(job{
		V:           1,
		ClientMsgNo: args.clientMsgNo,
		Target:      args.target,
		Message:     message{Type: "text", Text: args.text},
	}, recipients)
	if err != nil {
		return err
	}

	connection, err := amqp.DialConfig(args.url, amqp.Config{
		Dial: func(network, address string) (net.Conn, error) {
			return net.DialTimeout(network, address, patience)
		},
	})
	if err != nil {
		return err
	}
	defer connection.Close()
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	if err := channel.Confirm(false); err != nil {
		return err
	}
	returned := channel.NotifyReturn(make(chan amqp.Return, 1))
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	for number, body := range parts {
		id := fmt.Sprintf("%s/%d", args.clientMsgNo, number+1)
		if err := publish(channel, args, id, body, returned, closed); err != nil {
			return err
		}
	}
	fmt.Printf("accepted: %d recipients in %d message(s)\n", len(recipients), len(parts))
	return nil
}

// Publishes one message and waits until the broker has it on disk.
func publish(
	channel *amqp.Channel,
	args arguments,
	id string,
	body []byte,
	returned <-chan amqp.Return,
	closed <-chan *amqp.Error,
) error {
	headers := amqp.Table{}
	if args.traceparent != "" {
		headers["traceparent"] = args.traceparent
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	const mandatory, immediate = true, false
	confirm, err := channel.PublishWithDeferredConfirmWithContext(
		ctx, args.exchange, args.routingKey, mandatory, immediate, amqp.Publishing{
			DeliveryMode: amqp.Persistent,
			ContentType:  "application/json",
			MessageId:    id,
			Headers:      headers,
			Body:         body,
		})
	if err != nil {
		return err
	}
	// The library also resolves a confirm when the channel closes, so the reason is asked first.
	taken := make(chan bool, 1)
	go func() { taken <- confirm.Wait() }()
	select {
	case ack := <-taken:
		if reason := reasonOf(closed); reason != nil {
			return reason
		}
		if !ack {
			return errors.New("the broker refused, a queue is full or its leader is away")
		}
	case reason := <-closed:
		return orLost(reason)
	case <-ctx.Done():
		return errors.New("the broker did not confirm in time")
	}
	select {
	case <-returned:
		return errors.New("returned, no queue is bound to that exchange with that key")
	default:
		return nil
	}
}

func reasonOf(closed <-chan *amqp.Error) error {
	select {
	case reason := <-closed:
		return orLost(reason)
	default:
		return nil
	}
}

func orLost(reason *amqp.Error) error {
	if reason == nil {
		return errors.New("the connection is gone")
	}
	return reason
}

// The job as one message, or as parts. The same list gives the same parts, so that publishing it
// again stays harmless.
func bodies(whole job, recipients []string) ([][]byte, error) {
	rest, err := encode(whole)
	if err != nil {
		return nil, err
	}
	envelope := len(rest) + 64 // the rest of the job, and its "part"
	lists, size := [][]string{{}}, envelope
	for _, recipient := range recipients {
		text, err := encode(recipient)
		if err != nil {
			return nil, err
		}
		last := len(lists) - 1
		if len(lists[last]) == partRecipientsMax || size+len(text)+1 > partBytesMax {
			lists, last, size = append(lists, nil), last+1, envelope
		}
		lists[last] = append(lists[last], recipient)
		size += len(text) + 1
	}
	var messages [][]byte
	for index, users := range lists {
		piece := whole
		piece.Audience.Users = users
		if len(lists) > 1 {
			piece.Part = &part{Number: index + 1, Of: len(lists)}
		}
		body, err := encode(piece)
		if err != nil {
			return nil, err
		}
		messages = append(messages, body)
	}
	return messages, nil
}

// As JSON, with every character as it is: json.Marshal would write < and & as escapes.
func encode(value any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimRight(out.Bytes(), "\n"), err
}

func readRecipients(args arguments) ([]string, error) {
	var recipients []string
	if args.file == "" {
		for number := 0; number < args.count; number++ {
			recipients = append(recipients, fmt.Sprintf("u%d", number))
		}
		return recipients, nil
	}
	file, err := os.Open(args.file)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" {
			recipients = append(recipients, line)
		}
	}
	return recipients, lines.Err()
}

func readArguments() (arguments, error) {
	var args arguments
	flag.StringVar(&args.url, "url", "amqp://guest:guest@127.0.0.1:5672/%2f", "broker")
	flag.StringVar(&args.exchange, "exchange", "fanwise.jobs", "exchange of jobs")
	flag.StringVar(&args.routingKey, "routing-key", "normal", "priority: high, normal or bulk")
	flag.StringVar(&args.clientMsgNo, "client-msg-no", "", "key of the job")
	flag.StringVar(&args.text, "text", "", "text to send")
	flag.StringVar(&args.target, "target", "", "where to send, instead of the app's target")
	flag.StringVar(&args.file, "file", "", "recipients, one a line")
	flag.IntVar(&args.count, "count", 0, "recipients u0 to u<count-1>")
	trace := os.Getenv("TRACEPARENT")
	flag.StringVar(&args.traceparent, "traceparent", trace, "W3C trace context of every send")
	flag.Parse()
	if args.clientMsgNo == "" || args.text == "" {
		return args, errors.New("give --client-msg-no and --text")
	}
	if (args.file == "") == (args.count == 0) {
		return args, errors.New("give --file or --count")
	}
	return args, nil
}
