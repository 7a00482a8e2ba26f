"""Texts that drafters look up in: what stands where, and what goes on behind it. All of it on the CPU."""
