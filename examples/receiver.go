// Receives the calls of a Fanwise webhook target, the way any Go service can. Copy this file; it needs
// Go 1.19 or newer and nothing else.
//
//	go run receiver.go --port 8080 --secret whsec_bXkgc2VjcmV0
//
// What makes a receiver right:
//
//   - It verifies the signature before it believes anything: HMAC-SHA-256 over the id, the time and
//     the bytes of the body, as Standard Webhooks describes it. A time more than five minutes away is
//     refused.
//   - It remembers each webhook-id for as long as a call may be repeated, and answers a repeat like
//     the first call without delivering again. That is what `idempotent = true` promises to Fanwise.
//     Keep the ids in your database, in the transaction that delivers.
//   - It answers 2xx only when the message is safe. 4xx gives the recipients up, 429 and 503 ask
//     Fanwise to come again, and {"failed": [...]} in a 200 names those of a packed call that cannot
//     be reached.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const tolerance = 5 * time.Minute

type call struct {
	Recipient  string   `json:"recipient"`
	Recipients []string `json:"recipients"`
	Message    struct {
		Text string `json:"text"`
	} `json:"message"`
}

type failure struct {
	Recipient string `json:"recipient"`
	Code      string `json:"code"`
	Message   string `json:"message"`
}

type answer struct {
	status int
	body   any
}

type receiver struct {
	key     []byte
	lock    sync.Mutex
	answers map[string]answer // by webhook-id
}

// The key of a secret: base64 after whsec_, or the text itself.
func keyOf(secret string) ([]byte, error) {
	if encoded := strings.TrimPrefix(secret, "whsec_"); encoded != secret {
		return base64.StdEncoding.DecodeString(encoded)
	}
	return []byte(secret), nil
}

// Whether the request is from the holder of the key, and of now.
func isGenuine(key []byte, headers http.Header, body []byte, now time.Time) bool {
	id, timestamp := headers.Get("webhook-id"), headers.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return false
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
		return false
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.", id, timestamp)
	mac.Write(body)
	expected := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	// Several signatures while a secret is exchanged.
	for _, given := range strings.Split(headers.Get("webhook-signature"), " ") {
		if hmac.Equal([]byte(given), []byte(expected)) {
			return true
		}
	}
	return false
}

func (r *receiver) ServeHTTP(out http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	reply := answer{http.StatusUnauthorized, map[string]string{"error": "wrong signature"}}
	if isGenuine(r.key, request.Header, body, time.Now()) {
		reply = r.once(request.Header.Get("webhook-id"), body)
	}
	out.Header().Set("content-type", "application/json")
	out.WriteHeader(reply.status)
	_ = json.NewEncoder(out).Encode(reply.body)
}

// The answer of a call, which delivers the first time.
func (r *receiver) once(id string, body []byte) answer {
	r.lock.Lock()
	defer r.lock.Unlock()
	known, found := r.answers[id]
	if !found {
		known = deliver(body)
		r.answers[id] = known
	}
	return known
}

// Hands the message to each recipient, and reports those without an account.
func deliver(body []byte) answer {
	var it call
	if err := json.Unmarshal(body, &it); err != nil {
		return answer{http.StatusBadRequest, map[string]string{"error": err.Error()}}
	}
	single := it.Recipient != ""
	if single {
		it.Recipients = []string{it.Recipient}
	}
	failed := []failure{}
	for _, recipient := range it.Recipients {
		if strings.HasPrefix(recipient, "gone") {
			failed = append(failed, failure{recipient, "gone", "no such user"})
		} else {
			fmt.Printf("deliver %s: %s\n", recipient, it.Message.Text)
		}
	}
	if single && len(failed) > 0 {
		return answer{http.StatusGone, failed[0]}
	}
	return answer{http.StatusOK, map[string][]failure{"failed": failed}}
}

func main() {
	port := flag.Int("port", 8080, "port on 127.0.0.1")
	secret := flag.String("secret", "", "the signature_secret of the target")
	flag.Parse()
	key, err := keyOf(*secret)
	if err != nil || len(key) == 0 {
		log.Fatal("--secret: a text, or whsec_ and base64, is expected")
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	log.Fatal(http.Serve(listener, &receiver{key: key, answers: map[string]answer{}}))
}
