"""What a run will cost, take and need, before its first step."""
