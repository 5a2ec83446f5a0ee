"""The chat page of a served model: base and tuned answers side by side."""
