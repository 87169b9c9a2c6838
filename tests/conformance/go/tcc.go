package main

import (
	"time"

	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/grpc/codes"
)

func waiting(tcc *dtmgrpc.TccGrpc) { tcc.WaitResult = true }

func waitingShort(tcc *dtmgrpc.TccGrpc) {
	tcc.WaitResult = true
	tcc.RetryInterval = 1
}

var wait = &dtmgpb.DtmTransOptions{WaitResult: true}
var waitShort = &dtmgpb.DtmTransOptions{WaitResult: true, RetryInterval: 1}

var tccScenarios = []scenario{
	{"success", func(r *Run) {
		r.tcc(func(tcc *dtmgrpc.TccGrpc) {
			tcc.WaitResult = true
			tcc.BranchHeaders = map[string]string{"X-Trace": "abc"}
		})
	}},
	{"success without waiting", func(r *Run) {
		r.branches.script(r.gid, "02", "confirm", Answer{Pause: 2500 * time.Millisecond})
		start := time.Now()
		r.tcc(func(*dtmgrpc.TccGrpc) {})
		r.told("Submit", start, 2400*time.Millisecond)
		r.wait(4, 5*time.Second)
	}},
	{"second Try refused", func(r *Run) {
		r.branches.script(r.gid, "02", "try", Answer{Code: codes.Aborted, Message: "sold out"})
		r.tcc(waiting)
		r.abort(wait)
	}},
	{"Confirm fails twice", func(r *Run) {
		r.branches.script(r.gid, "02", "confirm", fails(2, codes.Internal, "broken")...)
		r.tcc(waitingShort)
		r.wait(6, 20*time.Second)
	}},
	{"Confirm is ongoing twice", func(r *Run) {
		r.branches.script(r.gid, "01", "confirm", fails(2, codes.FailedPrecondition, "not yet")...)
		r.tcc(waitingShort)
		r.wait(6, 20*time.Second)
	}},
	{"Confirm refuses", func(r *Run) {
		r.branches.script(r.gid, "01", "confirm", fails(1, codes.Aborted, "no")...)
		r.tcc(waitingShort)
		r.wait(5, 20*time.Second)
	}},
	{"Confirm refuses in the old way of saying ongoing", func(r *Run) {
		r.branches.script(r.gid, "01", "confirm", fails(1, codes.Aborted, "ONGOING")...)
		r.tcc(waitingShort)
		r.wait(5, 20*time.Second)
	}},
	{"Confirm times out", func(r *Run) {
		r.branches.script(r.gid, "02", "confirm", Answer{Pause: 2 * time.Second})
		r.tcc(func(tcc *dtmgrpc.TccGrpc) {
			tcc.WaitResult = true
			tcc.RequestTimeout = 1
			tcc.RetryInterval = 3 // longer than the call: DTM's cron would take it for one that was left
		})
		r.wait(5, 20*time.Second)
	}},
	{"Cancel fails once", func(r *Run) {
		r.branches.script(r.gid, "02", "cancel", fails(1, codes.Internal, "broken")...)
		r.prepare(waitShort)
		r.register("01")
		r.register("02")
		r.abort(waitShort)
		r.wait(3, 20*time.Second)
		time.Sleep(200 * time.Millisecond)
		r.abort(waitShort)
	}},
	{"abort waits as Prepare said", func(r *Run) {
		r.branches.script(r.gid, "01", "cancel", fails(1, codes.Internal, "broken")...)
		r.prepare(&dtmgpb.DtmTransOptions{RetryInterval: 1})
		r.register("01")
		r.abort(wait)
		r.wait(2, 20*time.Second)
	}},
	{"nobody submits", func(r *Run) {
		r.prepare(&dtmgpb.DtmTransOptions{TimeoutToFail: 2})
		r.register("01")
		r.register("02")
		r.wait(2, 20*time.Second)
		time.Sleep(200 * time.Millisecond)
		r.submit(wait)
	}},
	{"prepare twice, and after the end", func(r *Run) {
		r.prepare(nil)
		r.prepare(nil)
		r.submit(wait)
		r.prepare(nil)
	}},
	{"submit after the end", func(r *Run) {
		r.prepare(nil)
		r.register("01")
		r.submit(wait)
		r.submit(wait)
		r.abort(wait)
	}},
	{"submit after abort", func(r *Run) {
		r.prepare(wait)
		r.register("01")
		r.abort(nil)
		r.submit(wait)
	}},
	{"second submit while the first is confirming", func(r *Run) {
		r.branches.script(r.gid, "01", "confirm", fails(1, codes.Internal, "broken")...)
		r.prepare(waitShort)
		r.register("01")
		r.submit(waitShort)
		r.submit(&dtmgpb.DtmTransOptions{RetryInterval: 1})
		r.wait(2, 8*time.Second)
	}},
	{"submit of an unknown gid", func(r *Run) { r.submit(wait) }},
	{"abort of an unknown gid", func(r *Run) { r.abort(wait) }},
	{"register for an unknown gid", func(r *Run) { r.register("01") }},
	{"register after submit", func(r *Run) {
		r.prepare(nil)
		r.submit(wait)
		r.register("01")
	}},
	{"register twice", func(r *Run) {
		r.prepare(nil)
		r.register("01")
		r.register("01")
		r.submit(wait)
	}},
	{"register of an unknown type", func(r *Run) {
		r.prepare(nil)
		r.registerAs("nonsense", "01", "", "")
	}},
	{"branch without an address", func(r *Run) {
		r.prepare(nil)
		r.registerAs("tcc", "01", "", "")
		r.register("02")
		r.submit(wait)
	}},
	{"branch with an address nobody can call", func(r *Run) {
		r.prepare(nil)
		r.registerAs("tcc", "01", "nowhere", "nowhere")
		r.submit(wait)
	}},
	{"branches are called by the order of registration", func(r *Run) {
		r.prepare(nil)
		r.register("02")
		r.register("01")
		r.register("03")
		r.submit(wait)
	}},
}
