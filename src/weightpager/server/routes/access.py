"""The service that routes talk to, and who may ask: tokens, and where the admin may come from."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Settings

BEARER = {"WWW-Authenticate": "Bearer"}
NEEDS_BEARER = "expected the server's token as 'Authorization: Bearer …'"


async def service_of(request: Request) -> Service:
    """The application's service."""
    found: Service = request.app.state.service
    return found


Serving = Annotated[Service, Depends(service_of)]
"""The type of a route's argument that gets the service."""


async def user(request: Request, service: Serving) -> None:
    """Refuse requests without the server's token, if it has one.

    Raises:
        HTTPException: 401.
    """
    if not allowed(request, service.settings):
        raise HTTPException(401, NEEDS_BEARER, BEARER)


def allowed(request: Request, settings: Settings) -> bool:
    """Whether a request brings the token that these settings ask for, or they ask for none."""
    return settings.token is None or _brings(request, settings.token, settings.admin_token)


async def admin(request: Request, service: Serving) -> None:
    """Refuse requests that aren't the admin's.

    Raises:
        HTTPException: 401 or 403.
    """
    settings = service.settings
    if settings.admin_token is None:
        raise HTTPException(403, "there are no admin routes: the server was started without --admin-token-file")
    if not settings.remote_admin and not _is_local(request):
        raise HTTPException(403, "the admin may ask from this machine only: the server runs without --remote-admin")
    if not _brings(request, settings.admin_token):
        raise HTTPException(401, "expected the admin's token as 'Authorization: Bearer …'", BEARER)


def _brings(request: Request, *tokens: str | None) -> bool:
    scheme, _, brought = request.headers.get("authorization", "").partition(" ")
    # Every token is compared, whatever the others gave, so that the time taken tells nothing.
    matches = [hmac.compare_digest(brought.encode(), token.encode()) for token in tokens if token is not None]
    return scheme.lower() == "bearer" and any(matches)


def _is_local(request: Request) -> bool:
    if request.client is None:  # at a Unix socket, where a proxy's word for where a request comes from isn't read
        return "x-forwarded-for" not in request.headers
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
