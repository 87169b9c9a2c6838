package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "conformance.Branch"

// Call is one branch call as the branch saw it.
type Call struct {
	Branch    string            `json:"branch"`
	Op        string            `json:"op"`
	TransType string            `json:"trans_type"`
	Dtm       string            `json:"dtm"`
	Barrier   string            `json:"barrier"`
	Headers   map[string]string `json:"headers"`
	Payload   string            `json:"payload"`
	at        time.Time
}

// Answer is what a branch says to one call: a status, after a pause.
type Answer struct {
	Code    codes.Code
	Message string
	Pause   time.Duration
}

// Branches is a gRPC service whose answers are scripted per transaction, and which remembers its calls.
type Branches struct {
	Address string
	mutex   sync.Mutex
	calls   map[string][]Call
	answers map[string][]Answer // gid/branch/op: the answers in order, then OK
}

func serveBranches() *Branches {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	branches := &Branches{Address: listener.Addr().String(), calls: map[string][]Call{}, answers: map[string][]Answer{}}
	methods := []grpc.MethodDesc{}
	for _, name := range []string{"Try", "Confirm", "Cancel", "Action", "Compensate", "QueryPrepared", "Xa"} {
		methods = append(methods, grpc.MethodDesc{MethodName: name, Handler: branches.handle})
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil), Methods: methods}, branches)
	go func() { must(server.Serve(listener)) }()
	return branches
}

func (b *Branches) url(op string) string {
	return b.Address + "/" + service + "/" + op
}

func (b *Branches) script(gid, branch, op string, answers ...Answer) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.answers[gid+"/"+branch+"/"+op] = answers
}

func (b *Branches) seen(gid string) []Call {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return append([]Call{}, b.calls[gid]...)
}

func (b *Branches) handle(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	payload := &wrapperspb.StringValue{}
	if err := decode(payload); err != nil {
		return nil, err
	}
	answer := b.record(ctx, payload.Value)
	if err := registerXa(ctx); err != nil {
		return nil, err
	}
	time.Sleep(answer.Pause)
	if answer.Code != codes.OK {
		return nil, status.Error(answer.Code, answer.Message)
	}
	return &emptypb.Empty{}, nil
}

func (b *Branches) record(ctx context.Context, payload string) Answer {
	md, _ := metadata.FromIncomingContext(ctx)
	first := func(key string) string { return strings.Join(md.Get(key), ",") }
	call := Call{
		Branch: first("dtm-branch_id"), Op: first("dtm-op"), TransType: first("dtm-trans_type"), Dtm: first("dtm-dtm"),
		Headers: map[string]string{}, Payload: payload, at: time.Now(),
	}
	for key := range md {
		if strings.HasPrefix(key, "x-") {
			call.Headers[key] = first(key)
		}
	}
	gid := first("dtm-gid")
	barrier, err := dtmgrpc.BarrierFromGrpc(ctx)
	call.Barrier = fmt.Sprint(err)
	if err == nil {
		call.Barrier = strings.Join([]string{barrier.TransType, barrier.BranchID, barrier.Op}, "/")
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.calls[gid] = append(b.calls[gid], call)
	key := gid + "/" + call.Branch + "/" + call.Op
	if left := b.answers[key]; len(left) > 0 {
		b.answers[key] = left[1:]
		return left[0]
	}
	return Answer{}
}
