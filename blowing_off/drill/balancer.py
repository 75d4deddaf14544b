"""What stands between a client and the server processes: each request goes to the next one, and into the ledger."""

from __future__ import annotations

import itertools
import ssl
import time

import httpx

from .ledger import Ledger, Request


class Balancer(httpx.AsyncBaseTransport):
    """Takes the requests of one client to the processes at `urls`, in turns."""

    def __init__(self, client: str, graph: str, urls: list[str], ledger: Ledger) -> None:
        self._client = client
        self._graph = graph
        self._targets = itertools.cycle([httpx.URL(url) for url in urls])
        self._ledger = ledger
        self._inner = httpx.AsyncHTTPTransport(
            trust_env=False,
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # nothing here is TLS, and certificates take time to read
            # One that is kept would be closed by its server while this process is busy with a large answer.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        target = next(self._targets)
        request.url = request.url.copy_with(scheme=target.scheme, host=target.host, port=target.port)
        request.headers["host"] = f"{target.host}:{target.port}"
        at = time.monotonic()
        try:
            response = await self._inner.handle_async_request(request)
            try:
                body = b"".join([part async for part in response.aiter_raw()])
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            self._note(at, 0, f"{type(error).__name__}: {error}")
            raise
        self._note(at, response.status_code, "" if response.status_code == 200 else body[:300].decode(errors="replace"))
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=httpx.ByteStream(body),
            extensions=response.extensions,
        )

    def _note(self, at: float, status: int, why: str) -> None:
        self._ledger.requests.append(
            Request(
                client=self._client,
                graph=self._graph,
                at=at,
                seconds=time.monotonic() - at,
                status=status,
                why=why,
            )
        )

    async def aclose(self) -> None:
        await self._inner.aclose()
