"""From a checkpoint to a PEFT folder or a merged model, verified against the server."""
