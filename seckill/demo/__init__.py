"""The demo: a whole sale with a crowd of buyers, and an audit of the stores that believes no counter but theirs."""
