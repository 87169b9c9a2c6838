// Drives a DTM server, or what claims to be one, with DTM's own Go client and records what was seen: one JSON line per
// scenario. The same program runs against both, so the records can be compared. (Standard output has the client's log.)
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Answered is what a request to the coordinator came back with.
type Answered struct {
	Request string `json:"request"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Record is one scenario's line. AfterMs says when each branch operation was called first, from the scenario's start;
// GapsMs are the pauses between its calls.
type Record struct {
	Scenario string             `json:"scenario"`
	Gid      string             `json:"gid"`
	Branches string             `json:"branches"`
	Answers  []Answered         `json:"answers"`
	Calls    []Call             `json:"calls"`
	AfterMs  map[string]int64   `json:"after_ms"`
	GapsMs   map[string][]int64 `json:"gaps_ms"`
}

// Run is one scenario under way: a gid of its own, the coordinator and the branches.
type Run struct {
	dtm      string
	gid      string
	client   dtmgpb.DtmClient
	branches *Branches
	answers  []Answered
	began    time.Time
}

// pace is the time from one scenario's beginning to the next one's, as in playing.py.
const pace = 80 * time.Millisecond

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// note keeps the answer to a request, with the gid and our own address replaced by their names.
func (r *Run) note(request string, err error) error {
	st, ok := status.FromError(err)
	answered := Answered{Request: request, Code: st.Code().String(), Message: st.Message()}
	if err != nil && !ok {
		answered.Code = "not a status"
		answered.Message = err.Error()
	}
	answered.Message = strings.ReplaceAll(answered.Message, r.gid, "{gid}")
	answered.Message = strings.ReplaceAll(answered.Message, r.branches.Address+"/"+service, "{branches}")
	r.answers = append(r.answers, answered)
	return err
}

func (r *Run) request(options *dtmgpb.DtmTransOptions) *dtmgpb.DtmRequest {
	if options == nil {
		options = &dtmgpb.DtmTransOptions{} // as the client itself sends them
	}
	return &dtmgpb.DtmRequest{Gid: r.gid, TransType: "tcc", TransOptions: options}
}

func (r *Run) prepare(options *dtmgpb.DtmTransOptions) {
	_, err := r.client.Prepare(context.Background(), r.request(options))
	_ = r.note("Prepare", err)
}

func (r *Run) submit(options *dtmgpb.DtmTransOptions) {
	_, err := r.client.Submit(context.Background(), r.request(options))
	_ = r.note("Submit", err)
}

func (r *Run) abort(options *dtmgpb.DtmTransOptions) {
	_, err := r.client.Abort(context.Background(), r.request(options))
	_ = r.note("Abort", err)
}

func (r *Run) register(branch string) {
	r.registerAs("tcc", branch, r.branches.url("Confirm"), r.branches.url("Cancel"))
}

func (r *Run) registerAs(transType, branch, confirm, cancel string) {
	payload := []byte{0x0a, byte(len(branch))} // a StringValue holding the branch id
	_, err := r.client.RegisterBranch(context.Background(), &dtmgpb.DtmBranchRequest{
		Gid: r.gid, TransType: transType, BranchID: branch, BusiPayload: append(payload, branch...),
		Data: map[string]string{"confirm": confirm, "cancel": cancel},
	})
	_ = r.note("RegisterBranch", err)
}

// send asks the coordinator for an operation with what DTM's client has put together.
func (r *Run) send(operation string, trans *dtmimp.TransBase) {
	_ = r.note(operation, dtmgimp.DtmGrpcCall(trans, operation))
}

// told says it when a request that was not to wait has waited.
func (r *Run) told(request string, start time.Time, limit time.Duration) {
	if time.Since(start) > limit {
		r.answers = append(r.answers, Answered{Request: request, Message: "waited for a branch"})
	}
}

// tcc runs a global transaction of two branches as applications do.
func (r *Run) tcc(custom func(*dtmgrpc.TccGrpc)) {
	err := dtmgrpc.TccGlobalTransaction2(r.dtm, r.gid, custom, func(tcc *dtmgrpc.TccGrpc) error {
		for _, payload := range []string{"first", "second"} {
			reply := &wrapperspb.StringValue{}
			err := tcc.CallBranch(wrapperspb.String(payload), r.branches.url("Try"), r.branches.url("Confirm"), r.branches.url("Cancel"), reply)
			if err != nil {
				return err
			}
		}
		return nil
	})
	_ = r.note("global transaction", err)
}

// wait returns when the branches have seen that many calls, or when the time is up.
func (r *Run) wait(calls int, limit time.Duration) {
	for end := time.Now().Add(limit); time.Now().Before(end) && len(r.branches.seen(r.gid)) < calls; {
		time.Sleep(20 * time.Millisecond)
	}
}

func (r *Run) record(scenario string) Record {
	record := Record{
		Scenario: scenario, Gid: r.gid, Branches: r.branches.Address, Answers: r.answers, Calls: r.branches.seen(r.gid),
		AfterMs: map[string]int64{}, GapsMs: map[string][]int64{},
	}
	last := map[string]time.Time{}
	for i := range record.Calls {
		call := &record.Calls[i]
		if call.Dtm == r.dtm {
			call.Dtm = "{dtm}"
		}
		key := call.Branch + "/" + call.Op
		if before, again := last[key]; again {
			record.GapsMs[key] = append(record.GapsMs[key], call.at.Sub(before).Milliseconds())
		} else {
			record.AfterMs[key] = call.at.Sub(r.began).Milliseconds()
		}
		last[key] = call.at
	}
	return record
}

func main() {
	dtm := flag.String("dtm", "", "host:port of the coordinator's gRPC server")
	out := flag.String("out", "", "file for the records")
	flag.Parse()
	conn, err := grpc.Dial(*dtm, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	branches := serveBranches()
	records := make([]Record, len(scenarios))
	var group sync.WaitGroup
	for i, scenario := range scenarios {
		run := &Run{dtm: *dtm, gid: dtmgrpc.MustGenGid(*dtm), client: dtmgpb.NewDtmClient(conn), branches: branches}
		group.Add(1)
		go func() {
			defer group.Done()
			time.Sleep(time.Duration(i) * pace)
			run.began = time.Now()
			scenario.play(run)
			records[i] = run.record(scenario.name)
		}()
	}
	group.Wait()
	file, err := os.Create(*out)
	must(err)
	encoder := json.NewEncoder(file)
	encoder.SetEscapeHTML(false)
	for _, record := range records {
		must(encoder.Encode(record))
	}
	must(file.Close())
}
