package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// msg is a message of so many steps, whose payloads are their branch ids.
func (r *Run) msg(steps int, options dtmimp.TransOptions) *dtmgrpc.MsgGrpc {
	msg := dtmgrpc.NewMsgGrpc(r.dtm, r.gid)
	msg.TransOptions = options
	for i := 1; i <= steps; i++ {
		msg.Add(r.branches.url("Action"), wrapperspb.String(fmt.Sprintf("%02d", i)))
	}
	return msg
}

func (r *Run) prepareMsg(msg *dtmgrpc.MsgGrpc) {
	_ = r.note("Prepare", msg.Prepare(r.branches.url("QueryPrepared")))
}

func (r *Run) submitMsg(msg *dtmgrpc.MsgGrpc) { _ = r.note("Submit", msg.Submit()) }

func (r *Run) abortMsg(msg *dtmgrpc.MsgGrpc) { r.send("Abort", &msg.TransBase) }

// left prepares a message and lets its time run out; DTM looks when the time is surely up.
func (r *Run) left(calls int, answers ...Answer) *dtmgrpc.MsgGrpc {
	r.branches.script(r.gid, "00", "msg", answers...)
	msg := r.msg(2, dtmimp.TransOptions{WaitResult: true, TimeoutToFail: 1, RetryInterval: 2})
	r.prepareMsg(msg)
	r.wait(calls, 20*time.Second)
	time.Sleep(300 * time.Millisecond)
	return msg
}

// doAndSubmit runs a local transaction that ends so, and the message around it, as applications do.
func (r *Run) doAndSubmit(end error) {
	msg := r.msg(2, waits)
	err := msg.DoAndSubmit(r.branches.url("QueryPrepared"), func(bb *dtmcli.BranchBarrier) error {
		r.answers = append(r.answers, Answered{Request: "local", Message: bb.TransType + "/" + bb.BranchID + "/" + bb.Op})
		return end
	})
	_ = r.note("do and submit", err)
}

var no = Answer{Code: codes.Aborted, Message: "rolled back"}
var notYet = Answer{Code: codes.FailedPrecondition, Message: "not yet"}
var broken = Answer{Code: codes.Internal, Message: "broken"}

var msgScenarios = []scenario{
	{"msg: prepare and submit", func(r *Run) {
		options := waits
		options.BranchHeaders = map[string]string{"X-Trace": "abc"}
		msg := r.msg(2, options)
		r.prepareMsg(msg)
		r.submitMsg(msg)
	}},
	{"msg: submit without prepare", func(r *Run) { r.submitMsg(r.msg(2, waits)) }},
	{"msg: submit without waiting", func(r *Run) {
		r.pause("01", "action", 2500*time.Millisecond)
		start := time.Now()
		r.submitMsg(r.msg(2, dtmimp.TransOptions{}))
		r.told("Submit", start, 2400*time.Millisecond)
		r.wait(2, 5*time.Second)
	}},
	{"msg: nobody submits, the query says yes", func(r *Run) {
		r.submitMsg(r.left(3))
	}},
	{"msg: nobody submits, the query says no", func(r *Run) {
		r.submitMsg(r.left(1, no))
	}},
	{"msg: nobody submits, the query is ongoing, then says yes", func(r *Run) { r.left(4, notYet) }},
	{"msg: nobody submits, the query fails, then says yes", func(r *Run) { r.left(4, broken) }},
	{"msg: nobody submits, the query fails, then says no", func(r *Run) { r.left(2, broken, no) }},
	{"msg: nobody submits, the query says yes, an action fails once", func(r *Run) {
		r.fail(1, "02", "action")
		r.left(4)
	}},
	{"msg: abort, then submit", func(r *Run) {
		msg := r.msg(2, waits)
		r.prepareMsg(msg)
		r.abortMsg(msg)
		r.abortMsg(msg)
		r.submitMsg(msg)
		r.prepareMsg(msg)
	}},
	{"msg: abort after the end", func(r *Run) {
		msg := r.msg(1, waits)
		r.submitMsg(msg)
		r.abortMsg(msg)
	}},
	{"msg: abort while an action is repeated", func(r *Run) {
		r.fail(1, "01", "action")
		msg := r.msg(1, waitsShort)
		r.submitMsg(msg)
		r.abortMsg(msg)
		r.wait(2, 20*time.Second)
	}},
	{"msg: prepare twice, and after the end", func(r *Run) {
		msg := r.msg(1, waits)
		r.prepareMsg(msg)
		r.prepareMsg(msg)
		r.submitMsg(msg)
		r.prepareMsg(msg)
	}},
	{"msg: submit after the end", func(r *Run) {
		msg := r.msg(1, waits)
		r.submitMsg(msg)
		r.submitMsg(msg)
	}},
	{"msg: second submit while an action is repeated", func(r *Run) {
		r.fail(1, "02", "action")
		msg := r.msg(2, waitsShort)
		r.submitMsg(msg)
		r.submitMsg(msg)
		r.wait(4, 4*time.Second)
		time.Sleep(2500 * time.Millisecond) // nobody calls again
	}},
	{"msg: submit brings other steps than prepare", func(r *Run) {
		r.prepareMsg(r.msg(1, waits))
		r.submitMsg(r.msg(2, waits))
	}},
	{"msg: delayed", func(r *Run) {
		msg := r.msg(2, waits).SetDelay(2)
		r.prepareMsg(msg)
		r.submitMsg(msg)
		r.wait(2, 20*time.Second)
	}},
	{"msg: second action fails twice", func(r *Run) {
		r.fail(2, "02", "action")
		r.submitMsg(r.msg(3, waitsShort))
		r.wait(5, 20*time.Second)
	}},
	{"msg: action is ongoing twice", func(r *Run) {
		r.delay("01", "action", 2)
		r.submitMsg(r.msg(2, waitsShort))
		r.wait(4, 20*time.Second)
	}},
	{"msg: action refuses", func(r *Run) {
		r.refuse("01", "action")
		r.submitMsg(r.msg(2, waitsShort))
		r.wait(3, 20*time.Second)
	}},
	{"msg: steps without addresses", func(r *Run) {
		msg := r.msg(1, waits)
		msg.Add("", wrapperspb.String("02"))
		r.submitMsg(msg)
	}},
	{"msg: no steps", func(r *Run) {
		msg := r.msg(0, waits)
		r.prepareMsg(msg)
		r.submitMsg(msg)
	}},
	{"msg: local transaction succeeds", func(r *Run) { r.doAndSubmit(nil) }},
	{"msg: local transaction refuses", func(r *Run) { r.doAndSubmit(dtmcli.ErrFailure) }},
	{"msg: local transaction breaks, the query says yes", func(r *Run) { r.doAndSubmit(errors.New("broken")) }},
	{"msg: local transaction breaks, the query says no", func(r *Run) {
		r.branches.script(r.gid, "00", "msg", no)
		r.doAndSubmit(errors.New("broken"))
	}},
}
