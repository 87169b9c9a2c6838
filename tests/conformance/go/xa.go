package main

import (
	"context"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// registerXa has a branch that is called for its action in an XA transaction registered, as DTM's client does it in the
// branch; here before the business, which may still refuse.
func registerXa(ctx context.Context) error {
	xa, err := dtmgrpc.XaGrpcFromRequest(ctx)
	if err != nil || xa.TransType != "xa" || xa.Op != dtmimp.OpAction {
		return nil // another pattern's call
	}
	_, err = dtmgimp.MustGetDtmClient(xa.Dtm).RegisterBranch(context.Background(), &dtmgpb.DtmBranchRequest{
		Gid: xa.Gid, BranchID: xa.BranchID, TransType: xa.TransType, Data: map[string]string{"url": xa.Phase2URL},
	})
	return err
}

// xa runs a global transaction of two branches as applications do.
func (r *Run) xa(options dtmimp.TransOptions) {
	custom := func(xa *dtmgrpc.XaGrpc) { xa.TransOptions = options }
	err := dtmgrpc.XaGlobalTransaction2(r.dtm, r.gid, custom, func(xa *dtmgrpc.XaGrpc) error {
		for _, payload := range []string{"first", "second"} {
			if err := xa.CallBranch(wrapperspb.String(payload), r.branches.url("Xa"), &wrapperspb.StringValue{}); err != nil {
				return err
			}
		}
		return nil
	})
	_ = r.note("global transaction", err)
}

func (r *Run) sendXa(operation string, options dtmimp.TransOptions) {
	trans := dtmimp.NewTransBase(r.gid, "xa", r.dtm, "")
	trans.TransOptions = options
	r.send(operation, trans)
}

func (r *Run) registerXa(branch, url string) {
	_, err := r.client.RegisterBranch(context.Background(), &dtmgpb.DtmBranchRequest{
		Gid: r.gid, TransType: "xa", BranchID: branch, Data: map[string]string{"url": url},
	})
	_ = r.note("RegisterBranch", err)
}

// openXa prepares a transaction with these branches registered.
func (r *Run) openXa(options dtmimp.TransOptions, branches ...string) {
	r.sendXa("Prepare", options)
	for _, branch := range branches {
		r.registerXa(branch, r.branches.url("Xa"))
	}
}

var xaScenarios = []scenario{
	{"xa: success", func(r *Run) {
		options := waits
		options.BranchHeaders = map[string]string{"X-Trace": "abc"}
		r.xa(options)
	}},
	{"xa: success without waiting", func(r *Run) {
		r.pause("01", "commit", 2500*time.Millisecond)
		start := time.Now()
		r.xa(dtmimp.TransOptions{})
		r.told("Submit", start, 2400*time.Millisecond)
		r.wait(4, 5*time.Second)
	}},
	{"xa: second action refused", func(r *Run) {
		r.refuse("02", "action")
		r.xa(waits)
	}},
	{"xa: first commit fails twice", func(r *Run) {
		r.fail(2, "01", "commit")
		r.xa(waitsShort)
		r.wait(6, 20*time.Second)
	}},
	{"xa: second commit fails once", func(r *Run) {
		r.fail(1, "02", "commit")
		r.xa(waitsShort)
		r.wait(5, 20*time.Second)
	}},
	{"xa: commit is ongoing twice", func(r *Run) {
		r.delay("01", "commit", 2)
		r.xa(waitsShort)
		r.wait(6, 20*time.Second)
	}},
	{"xa: commit refuses", func(r *Run) {
		r.refuse("01", "commit")
		r.xa(waitsShort)
		r.wait(5, 20*time.Second)
	}},
	{"xa: rollback fails once", func(r *Run) {
		r.fail(1, "01", "rollback")
		r.openXa(waitsShort, "01", "02")
		r.sendXa("Abort", waitsShort)
		r.wait(3, 20*time.Second)
		time.Sleep(200 * time.Millisecond)
		r.sendXa("Abort", waitsShort)
	}},
	{"xa: abort again while a rollback is repeated", func(r *Run) {
		patient := dtmimp.TransOptions{WaitResult: true, RetryInterval: 3}
		r.fail(1, "02", "rollback")
		r.openXa(patient, "01", "02")
		r.sendXa("Abort", patient)
		time.Sleep(1100 * time.Millisecond) // DTM's SQL store breaks on an Abort within the same second
		r.sendXa("Abort", patient)
	}},
	{"xa: nobody submits", func(r *Run) {
		r.openXa(dtmimp.TransOptions{WaitResult: true, TimeoutToFail: 1, RetryInterval: 2}, "01", "02")
		r.wait(2, 20*time.Second)
		time.Sleep(300 * time.Millisecond)
		r.sendXa("Submit", waits)
	}},
	{"xa: prepare twice, and after the end", func(r *Run) {
		r.openXa(waits)
		r.openXa(waits, "01")
		r.sendXa("Submit", waits)
		r.openXa(waits, "02")
	}},
	{"xa: submit after the end", func(r *Run) {
		r.openXa(waits, "01")
		r.sendXa("Submit", waits)
		r.sendXa("Submit", waits)
		r.sendXa("Abort", waits)
	}},
	{"xa: submit after abort", func(r *Run) {
		r.openXa(waits, "01")
		r.sendXa("Abort", waits)
		r.sendXa("Submit", waits)
	}},
	{"xa: second submit while the first is committing", func(r *Run) {
		r.fail(1, "01", "commit")
		r.openXa(waitsShort, "01")
		r.sendXa("Submit", waitsShort)
		r.sendXa("Submit", dtmimp.TransOptions{RetryInterval: 1})
		r.wait(2, 6*time.Second)
	}},
	{"xa: submit of an unknown gid", func(r *Run) { r.sendXa("Submit", waits) }},
	{"xa: abort of an unknown gid", func(r *Run) { r.sendXa("Abort", waits) }},
	{"xa: register for an unknown gid", func(r *Run) { r.registerXa("01", r.branches.url("Xa")) }},
	{"xa: branch without an address", func(r *Run) {
		r.openXa(waits, "01")
		r.registerXa("02", "")
		r.sendXa("Submit", waits)
	}},
	{"xa: branches are called by the order of registration", func(r *Run) {
		r.openXa(waits, "02", "01", "03")
		r.sendXa("Abort", waits)
	}},
}
