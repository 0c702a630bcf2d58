"""A run that answers over HTTP: images in, JSON out.

`app` holds the addresses, `batching` what lets concurrent requests share a batch, `gate` and `guard` what keeps clients
in their limits, request by request and connection by connection.
"""
