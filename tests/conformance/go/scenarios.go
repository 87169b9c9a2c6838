package main

import (
	"slices"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"google.golang.org/grpc/codes"
)

type scenario struct {
	name string
	play func(*Run)
}

func fails(times int, code codes.Code, message string) []Answer {
	answers := make([]Answer, times)
	for i := range answers {
		answers[i] = Answer{Code: code, Message: message}
	}
	return answers
}

func (r *Run) refuse(branch, op string) {
	r.branches.script(r.gid, branch, op, Answer{Code: codes.Aborted, Message: "sold out"})
}

func (r *Run) fail(times int, branch, op string) {
	r.branches.script(r.gid, branch, op, fails(times, codes.Internal, "broken")...)
}

func (r *Run) delay(branch, op string, ongoing int) {
	r.branches.script(r.gid, branch, op, fails(ongoing, codes.FailedPrecondition, "not yet")...)
}

func (r *Run) pause(branch, op string, pause time.Duration) {
	r.branches.script(r.gid, branch, op, Answer{Pause: pause})
}

var waits = dtmimp.TransOptions{WaitResult: true}
var waitsShort = dtmimp.TransOptions{WaitResult: true, RetryInterval: 1}

// scenarios are all of them, in the order of the recording.
var scenarios = slices.Concat(tccScenarios, sagaScenarios, msgScenarios, xaScenarios)
