"""Who may send requests to a server of ours: names, addresses and the key; and who proxies ours."""
