"""Generated protobuf code; written by `make proto`, never edited."""
