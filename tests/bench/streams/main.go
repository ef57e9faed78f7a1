// Streams of small chunks and a client that counts them: what a gateway is measured between.
//
//	streams serve PORT CHUNKS PACE      answers each completion with so many events, PACE apart (0s: all at once)
//	streams load URL CONCURRENT TOTAL RAMP  sends requests, so many at a time of which the first start evenly over the
//	                                    ramp, prints one JSON document of what came back
//	streams hold URL COUNT SECONDS      opens streams, says so, and holds them
//
// The server says to be a plain SGLang server with nothing to do, so that every router takes it.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const event = `data: {"id":"0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,` +
	`"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}],"model":"m","usage":null}` + "\n\n"

func main() {
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2], number(os.Args[3]), duration(os.Args[4]))
	case "load":
		load(os.Args[2], number(os.Args[3]), number(os.Args[4]), duration(os.Args[5]))
	case "hold":
		hold(os.Args[2], number(os.Args[3]), number(os.Args[4]))
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	check(err)
	return value
}

func duration(text string) time.Duration {
	value, err := time.ParseDuration(text)
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(port string, chunks int, pace time.Duration) {
	respond := func(document string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, document)
		}
	}
	http.HandleFunc("/health", respond(`{}`))
	http.HandleFunc("/health_generate", respond(`{}`))
	http.HandleFunc("/v1/models", respond(`{"object":"list","data":[{"id":"m","object":"model"}]}`))
	info := `{"model_path":"m","served_model_name":"m","tokenizer_path":"m","max_total_num_tokens":10000000,` +
		`"max_running_requests":100000,"chunked_prefill_size":8192,"disaggregation_mode":"null","tp_size":1,` +
		`"dp_size":1,"version":"0.5.23","is_generation":true,"weight_version":"default"}`
	for _, path := range []string{"/server_info", "/get_server_info", "/model_info", "/get_model_info"} {
		http.HandleFunc(path, respond(info))
	}
	http.HandleFunc("/v1/loads", respond(`{"loads":[{"dp_rank":0,"num_running_reqs":0,"num_waiting_reqs":0,`+
		`"num_waiting_uncached_tokens":0,"num_used_tokens":0,"num_total_tokens":0,"max_total_num_tokens":10000000,`+
		`"max_running_requests":100000,"token_usage":0.0}]}`))
	http.HandleFunc("/abort_request", respond(`{}`))
	http.HandleFunc("/v1/completions", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		next := time.Now()
		for index := 0; index < chunks; index++ {
			io.WriteString(w, event)
			if pace > 0 {
				w.(http.Flusher).Flush()
				next = next.Add(pace)
				time.Sleep(time.Until(next))
			}
		}
		io.WriteString(w, "data: [DONE]\n\n")
	})
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	check(err)
	check(http.Serve(listener, nil))
}

func body() []byte {
	prompt := bytes.Repeat([]byte("word "), 200)
	return []byte(`{"model":"m","prompt":"` + string(prompt) + `","max_tokens":64,"stream":true}`)
}

func client(concurrent int) *http.Client {
	transport := &http.Transport{MaxIdleConns: 0, MaxIdleConnsPerHost: concurrent, DisableCompression: true}
	return &http.Client{Transport: transport}
}

type outcome struct {
	Requests   int       `json:"requests"`
	Whole      int       `json:"whole"`
	Chunks     int       `json:"chunks"`
	Seconds    float64   `json:"seconds"`
	TTFT       []float64 `json:"ttft_milliseconds"`
	FirstError string    `json:"first_error,omitempty"`
}

func load(url string, concurrent int, total int, ramp time.Duration) {
	var left atomic.Int64
	left.Store(int64(total))
	sent, http := body(), client(concurrent)
	var mutex sync.Mutex
	result := outcome{Requests: total}
	var all sync.WaitGroup
	started := time.Now()
	for worker := 0; worker < concurrent; worker++ {
		all.Add(1)
		go func() {
			defer all.Done()
			time.Sleep(ramp * time.Duration(worker) / time.Duration(concurrent))
			reader := bufio.NewReaderSize(nil, 32*1024)
			for left.Add(-1) >= 0 {
				ttft, chunks, err := one(http, url, sent, reader)
				mutex.Lock()
				result.Chunks += chunks
				if err == nil {
					result.Whole++
					result.TTFT = append(result.TTFT, ttft)
				} else if result.FirstError == "" {
					result.FirstError = err.Error()
				}
				mutex.Unlock()
			}
		}()
	}
	all.Wait()
	result.Seconds = time.Since(started).Seconds()
	sort.Float64s(result.TTFT)
	check(json.NewEncoder(os.Stdout).Encode(result))
}

func one(client *http.Client, url string, sent []byte, reader *bufio.Reader) (float64, int, error) {
	started := time.Now()
	response, err := client.Post(url, "application/json", bytes.NewReader(sent))
	if err != nil {
		return 0, 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != 200 {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 300))
		return 0, 0, fmt.Errorf("status %d: %s", response.StatusCode, said)
	}
	reader.Reset(response.Body)
	ttft, chunks, done := 0.0, 0, false
	for {
		line, err := reader.ReadSlice('\n')
		if len(line) > 1 {
			if chunks == 0 {
				ttft = float64(time.Since(started).Microseconds()) / 1000
			}
			if bytes.HasPrefix(line, []byte("data: [DONE]")) {
				done = true
			} else {
				chunks++
			}
		}
		if err == io.EOF && done {
			return ttft, chunks, nil
		}
		if err != nil {
			return ttft, chunks, fmt.Errorf("after %d chunks: %w", chunks, err)
		}
	}
}

func hold(url string, count int, seconds int) {
	sent, http := body(), client(count)
	var open sync.WaitGroup
	for index := 0; index < count; index++ {
		open.Add(1)
		go func() {
			response, err := http.Post(url, "application/json", bytes.NewReader(sent))
			check(err)
			response.Body.Read(make([]byte, 64))
			open.Done()
			io.Copy(io.Discard, response.Body)
		}()
	}
	open.Wait()
	fmt.Println("open")
	time.Sleep(time.Duration(seconds) * time.Second)
}
