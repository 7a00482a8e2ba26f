"""Makes this folder importable for the folder below it (`paged_tools`). Nothing is set here; see `test_triton.py`."""
