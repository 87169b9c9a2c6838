"""One suite, two clients, several coordinators: the same scenarios, recorded and compared."""
