"""The data sets: what each one is, where its rows are, and how a row becomes a conversation."""
