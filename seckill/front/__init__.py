"""The front: receives buyers' orders over HTTP and gRPC, has them admitted, publishes them and replies.

`intake.py` is the one straight path that both share; `http.py` and `grpc.py` only translate. May use admission, a
publisher and the product service's API; never touches SQL.
"""
