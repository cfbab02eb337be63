"""What the tests build instead of downloading: tiny models, adapters for them, servers."""
