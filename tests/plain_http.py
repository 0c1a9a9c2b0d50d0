"""httpx for our own servers on this machine, which speak plain HTTP.

By itself httpx loads the certificates of all the world for every client and every single call: 40 ms of a core each.
"""

import ssl
from functools import partial

import httpx

_NONE_KNOWN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

get = partial(httpx.get, verify=_NONE_KNOWN)
post = partial(httpx.post, verify=_NONE_KNOWN)
Client = partial(httpx.Client, verify=_NONE_KNOWN)
