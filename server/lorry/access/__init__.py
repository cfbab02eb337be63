"""Who may do what: API keys, their limits, and the audit of changes."""
