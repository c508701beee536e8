// Submits one broadcast job over HTTP, the way any Go service can. Copy this file; it needs nothing
// but the standard library.
//
//	go run http_producer.go --client-msg-no promo-7 --text Hello --count 1000
//	FANWISE_TOKEN=... go run http_producer.go --url https://fanwise.example.com \
//	    --client-msg-no promo-8 --text Hello --file users.txt
//
// What makes a job safe to submit:
//
//   - client_msg_no is the key of the job. Submit again with the same key and message, after a
//     crash or when in doubt, and nobody gets it twice. Take it from your own data, never a new
//     random one for each try.
//   - Only 200 and 202 mean "accepted". After 429, 5xx, or no answer at all, the same request is
//     sent again: after the seconds of Retry-After, or else after a pause that doubles.
//   - Any other status is a refusal. Repeating it does not help; its text says what to change.
//
// Exit code 0: the job is on disk. Anything else: not known to be accepted; run it again.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	tries    = 8
	patience = 2 * time.Minute
	pauseMax = 30 * time.Second
)

// The server says no, and would say so again.
type refused struct{ why string }

func (it refused) Error() string { return it.why }

type job struct {
	V           int     `json:"v"`
	ClientMsgNo string  `json:"client_msg_no"`
	Target      string  `json:"target,omitempty"`
	Message     message `json:"message"`
}

type message struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type answer struct {
	Job        string `json:"job"`
	Recipients int    `json:"recipients"`
}

type arguments struct {
	url, clientMsgNo, text, target, file, traceparent string
	count                                             int
}

func main() {
	err := run()
	var no refused
	switch {
	case errors.As(err, &no):
		fmt.Fprintln(os.Stderr, "not accepted:", err)
		os.Exit(1)
	case err != nil:
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
	spec, err := json.Marshal(job{
		V:           1,
		ClientMsgNo: args.clientMsgNo,
		Target:      args.target,
		Message:     message{Type: "text", Text: args.text},
	})
	if err != nil {
		return err
	}
	var list bytes.Buffer
	lines := json.NewEncoder(&list)
	for _, recipient := range recipients {
		if err := lines.Encode(recipient); err != nil {
			return err
		}
	}
	headers := http.Header{}
	// The job goes in a header and its list in the body, so the list may have any length.
	headers.Set("Content-Type", "application/x-ndjson")
	headers.Set("Fanwise-Job-Spec", base64.StdEncoding.EncodeToString(spec))
	if token := os.Getenv("FANWISE_TOKEN"); token != "" {
		headers.Set("Authorization", "Bearer "+token)
	}
	if args.traceparent != "" {
		headers.Set("traceparent", args.traceparent)
	}
	accepted, err := submit(strings.TrimRight(args.url, "/")+"/v1/jobs", headers, list.Bytes())
	if err != nil {
		return err
	}
	fmt.Printf("accepted: %d recipients, job %s\n", accepted.Recipients, accepted.Job)
	return nil
}

// Sends the request until the job is accepted or refused.
func submit(url string, headers http.Header, body []byte) (answer, error) {
	client := http.Client{Timeout: patience}
	for attempt := 1; ; attempt++ {
		accepted, after, err := once(&client, url, headers, body)
		var no refused
		if err == nil || errors.As(err, &no) {
			return accepted, err
		}
		if attempt == tries {
			return answer{}, fmt.Errorf("%d tries; the last one: %w", tries, err)
		}
		time.Sleep(pause(attempt, after))
	}
}

// Sends the request once. Returns the Retry-After of the answer, if there is one.
func once(client *http.Client, url string, headers http.Header, body []byte) (answer, string, error) {
	request, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, "", refused{err.Error()}
	}
	request.Header = headers
	reply, err := client.Do(request)
	if err != nil {
		return answer{}, "", err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return answer{}, "", err
	}
	status := reply.StatusCode
	if status == http.StatusOK || status == http.StatusAccepted {
		var accepted answer
		err := json.Unmarshal(text, &accepted)
		return accepted, "", err
	}
	why := reason(reply.Status, text)
	if status != http.StatusTooManyRequests && status < 500 {
		return answer{}, "", refused{why}
	}
	return answer{}, reply.Header.Get("Retry-After"), errors.New(why)
}

func pause(attempt int, after string) time.Duration {
	if seconds, err := strconv.Atoi(after); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second
	}
	wait := 500 * time.Millisecond << attempt
	if wait > pauseMax {
		wait = pauseMax
	}
	return wait/2 + time.Duration(rand.Int63n(int64(wait/2)))
}

// The text of an RFC 9457 problem document, or the status.
func reason(status string, text []byte) string {
	var problem struct{ Detail string }
	if json.Unmarshal(text, &problem) != nil || problem.Detail == "" {
		return status
	}
	return status + ": " + problem.Detail
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
	flag.StringVar(&args.url, "url", "http://127.0.0.1:9700", "the gateway")
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
