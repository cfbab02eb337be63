"""Fetches adapters from elsewhere: https, the hub, object stores. The only outbound requests."""
