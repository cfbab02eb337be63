"""Several engines behind one HTTP side, on Ray Serve. Needs the extra `ray`; nothing else here
imports Ray."""
