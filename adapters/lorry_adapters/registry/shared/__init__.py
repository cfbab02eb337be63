"""A catalog that several servers share: PostgreSQL by URL."""
