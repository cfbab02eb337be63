"""HTTP: schemas, routes, errors and streams. Nothing below this speaks JSON."""
