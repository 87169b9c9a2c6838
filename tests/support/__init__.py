"""Stand-ins and children that several suites use."""
