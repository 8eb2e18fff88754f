"""Instructions: what a query is asked for (the paper's mE5-large-instruct)."""
