"""HTTP/1.1 as bytes on sockets: what carries requests and tokens, and knows nothing of what they mean."""
