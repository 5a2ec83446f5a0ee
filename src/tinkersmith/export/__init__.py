"""A checkpoint -> a PEFT folder or a merged model, checked against the server."""
