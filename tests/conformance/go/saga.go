package main

import (
	"fmt"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// saga is one of so many steps, whose payloads are their branch ids.
func (r *Run) saga(steps int, options dtmimp.TransOptions) *dtmgrpc.SagaGrpc {
	saga := dtmgrpc.NewSagaGrpc(r.dtm, r.gid)
	saga.TransOptions = options
	for i := 1; i <= steps; i++ {
		saga.Add(r.branches.url("Action"), r.branches.url("Compensate"), wrapperspb.String(fmt.Sprintf("%02d", i)))
	}
	return saga
}

func (r *Run) submitSaga(saga *dtmgrpc.SagaGrpc) { _ = r.note("Submit", saga.Submit()) }

// four is a concurrent saga in which 03 follows 01, and 04 follows 02 and 03.
func (r *Run) four() *dtmgrpc.SagaGrpc {
	return r.saga(4, waits).EnableConcurrent().AddBranchOrder(2, []int{0}).AddBranchOrder(3, []int{1, 2})
}

var sagaScenarios = []scenario{
	{"saga: success", func(r *Run) {
		options := waits
		options.BranchHeaders = map[string]string{"X-Trace": "abc"}
		r.submitSaga(r.saga(3, options))
	}},
	{"saga: success without waiting", func(r *Run) {
		r.pause("01", "action", 2500*time.Millisecond)
		start := time.Now()
		r.submitSaga(r.saga(2, dtmimp.TransOptions{}))
		r.told("Submit", start, 2400*time.Millisecond)
		r.wait(2, 5*time.Second)
	}},
	{"saga: first action refused", func(r *Run) {
		r.refuse("01", "action")
		r.submitSaga(r.saga(3, waits))
	}},
	{"saga: second action refused", func(r *Run) {
		r.refuse("02", "action")
		r.submitSaga(r.saga(3, waits))
	}},
	{"saga: third action refused", func(r *Run) {
		r.refuse("03", "action")
		r.submitSaga(r.saga(3, waits))
	}},
	{"saga: action refused, nobody waits", func(r *Run) {
		r.refuse("02", "action")
		r.submitSaga(r.saga(2, dtmimp.TransOptions{}))
		r.wait(4, 5*time.Second)
	}},
	{"saga: action fails twice", func(r *Run) {
		r.fail(2, "02", "action")
		r.submitSaga(r.saga(3, waitsShort))
		r.wait(5, 20*time.Second)
	}},
	{"saga: action is ongoing twice", func(r *Run) {
		r.delay("02", "action", 2)
		r.submitSaga(r.saga(2, waitsShort))
		r.wait(4, 20*time.Second)
	}},
	{"saga: action times out", func(r *Run) {
		r.pause("02", "action", 2*time.Second)
		r.submitSaga(r.saga(2, dtmimp.TransOptions{WaitResult: true, RequestTimeout: 1, RetryInterval: 3}))
		r.wait(3, 20*time.Second)
	}},
	{"saga: action fails, then is refused", func(r *Run) {
		r.branches.script(r.gid, "02", "action", Answer{Code: codes.Internal, Message: "broken"}, Answer{Code: codes.Aborted, Message: "sold out"})
		r.submitSaga(r.saga(2, waitsShort))
		r.wait(5, 20*time.Second)
	}},
	{"saga: first compensation fails once", func(r *Run) {
		r.refuse("02", "action")
		r.fail(1, "01", "compensate")
		r.submitSaga(r.saga(2, waitsShort))
		r.wait(5, 20*time.Second)
	}},
	{"saga: second compensation fails once", func(r *Run) {
		r.refuse("02", "action")
		r.fail(1, "02", "compensate")
		r.submitSaga(r.saga(2, waitsShort)) // DTM waits six seconds for nothing
		r.wait(5, 20*time.Second)
	}},
	{"saga: compensation refuses", func(r *Run) {
		r.refuse("01", "action")
		r.refuse("01", "compensate")
		r.submitSaga(r.saga(2, waitsShort))
		r.wait(3, 20*time.Second)
	}},
	{"saga: compensation is ongoing", func(r *Run) {
		r.refuse("01", "action")
		r.delay("01", "compensate", 1)
		r.submitSaga(r.saga(2, waitsShort))
		r.wait(3, 20*time.Second)
	}},
	{"saga: concurrent", func(r *Run) { r.submitSaga(r.saga(3, waits).EnableConcurrent()) }},
	{"saga: concurrent, second action refused", func(r *Run) {
		r.branches.script(r.gid, "02", "action", Answer{Code: codes.Aborted, Message: "sold out", Pause: 400 * time.Millisecond})
		r.submitSaga(r.saga(3, waits).EnableConcurrent())
	}},
	{"saga: concurrent, refused while another action runs", func(r *Run) {
		r.pause("01", "action", 1200*time.Millisecond)
		r.branches.script(r.gid, "02", "action", Answer{Code: codes.Aborted, Message: "sold out", Pause: 400 * time.Millisecond})
		r.submitSaga(r.saga(2, waits).EnableConcurrent())
		time.Sleep(1200 * time.Millisecond) // the action's answer is noted all the same
	}},
	{"saga: concurrent, an action fails once", func(r *Run) {
		r.fail(1, "02", "action")
		r.submitSaga(r.saga(3, waitsShort).EnableConcurrent())
		r.wait(4, 20*time.Second)
	}},
	{"saga: concurrent with orders", func(r *Run) {
		r.pause("02", "action", 400*time.Millisecond)
		r.submitSaga(r.four())
	}},
	{"saga: concurrent with orders, last action refused", func(r *Run) {
		r.pause("02", "action", 400*time.Millisecond)
		r.refuse("04", "action")
		r.pause("03", "compensate", 400*time.Millisecond)
		r.submitSaga(r.four())
	}},
	{"saga: concurrent with orders, refused in the middle", func(r *Run) {
		r.pause("01", "action", 1200*time.Millisecond)
		r.branches.script(r.gid, "02", "action", Answer{Code: codes.Aborted, Message: "sold out", Pause: 400 * time.Millisecond})
		r.submitSaga(r.four())
		time.Sleep(1200 * time.Millisecond)
	}},
	{"saga: time is up while an action fails", func(r *Run) {
		r.fail(3, "02", "action")
		r.submitSaga(r.saga(3, dtmimp.TransOptions{WaitResult: true, TimeoutToFail: 2, RetryInterval: 2}))
		r.wait(4, 20*time.Second)
	}},
	{"saga: time is up while an action runs", func(r *Run) {
		r.pause("01", "action", 1600*time.Millisecond)
		r.submitSaga(r.saga(3, dtmimp.TransOptions{WaitResult: true, TimeoutToFail: 1, RetryInterval: 8}))
	}},
	{"saga: last action succeeds when the time is up", func(r *Run) {
		r.pause("01", "action", 1600*time.Millisecond)
		r.submitSaga(r.saga(1, dtmimp.TransOptions{WaitResult: true, TimeoutToFail: 1, RetryInterval: 8}))
	}},
	{"saga: retry limit exceeded", func(r *Run) {
		r.fail(3, "02", "action")
		r.submitSaga(r.saga(3, dtmimp.TransOptions{WaitResult: true, RetryLimit: 2}))
	}},
	{"saga: action succeeds within the retry limit", func(r *Run) {
		r.fail(2, "02", "action")
		r.submitSaga(r.saga(3, dtmimp.TransOptions{WaitResult: true, RetryLimit: 2}))
	}},
	{"saga: retry limit is for all actions together", func(r *Run) {
		r.fail(1, "01", "action")
		r.fail(2, "02", "action")
		r.submitSaga(r.saga(2, dtmimp.TransOptions{WaitResult: true, RetryLimit: 2}))
	}},
	{"saga: ongoing counts for the retry limit", func(r *Run) {
		r.delay("01", "action", 2)
		r.submitSaga(r.saga(2, dtmimp.TransOptions{WaitResult: true, RetryLimit: 1}))
	}},
	{"saga: submit after the end", func(r *Run) {
		saga := r.saga(1, waits)
		r.submitSaga(saga)
		r.submitSaga(saga)
		r.send("Prepare", &saga.TransBase)
		r.send("Abort", &saga.TransBase)
	}},
	{"saga: submit after a refusal", func(r *Run) {
		r.refuse("01", "action")
		saga := r.saga(1, waits)
		r.submitSaga(saga)
		r.submitSaga(saga)
	}},
	{"saga: second submit while an action is repeated", func(r *Run) {
		r.fail(1, "02", "action")
		saga := r.saga(2, waitsShort)
		r.submitSaga(saga)
		r.submitSaga(saga)
		r.wait(4, 4*time.Second)
		time.Sleep(2500 * time.Millisecond) // nobody calls again
	}},
	{"saga: prepare, abort, submit", func(r *Run) {
		saga := r.saga(2, waits)
		r.send("Prepare", &saga.TransBase)
		r.send("Prepare", &saga.TransBase)
		r.send("Abort", &saga.TransBase)
		r.submitSaga(saga)
	}},
	{"saga: abort while an action is repeated", func(r *Run) {
		r.fail(1, "01", "action")
		saga := r.saga(1, waitsShort)
		r.submitSaga(saga)
		r.send("Abort", &saga.TransBase)
		r.wait(2, 20*time.Second)
	}},
	{"saga: steps without addresses", func(r *Run) {
		saga := r.saga(1, waits)
		saga.Add("", "", wrapperspb.String("02"))
		saga.Add(r.branches.url("Action"), "", wrapperspb.String("03"))
		r.refuse("03", "action")
		r.submitSaga(saga)
	}},
	{"saga: no steps", func(r *Run) { r.submitSaga(r.saga(0, waits)) }},
}
