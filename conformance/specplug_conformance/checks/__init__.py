"""The checks. One subject a file; a check is a function that raises `Failure`."""
