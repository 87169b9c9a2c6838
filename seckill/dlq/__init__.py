"""The dead-letter tool: what on-call people see of set-aside records, and what they do about them."""
